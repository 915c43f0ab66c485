//! Who may do what: the one place where that is decided.

use chrono::{DateTime, Utc};
use thiserror::Error;
use wattle_wire::admin::Role;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Nobody that is known.
    Anybody,
    /// A person or script.
    ApiToken(Grant),
    /// An enrolled node; which one, its signature has told.
    Node,
}

/// What an api token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    /// `None` means that it does not end.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// What needs no credential: there is nothing to see, or the body holds one of its own.
    Ask,
    /// To see the mesh and how it is.
    Read,
    /// To change sites and nodes, and to let machines join.
    Change,
    /// To see, make and revoke api tokens.
    Grant,
    /// To change what holds for the whole mesh.
    Configure,
    /// To follow and to report, as a node does.
    TakePart,
}

/// On what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The mesh, whatever of it.
    Mesh,
    /// An api token that is to be made.
    NewApiToken(Grant),
    /// An api token of this role.
    ApiToken(Role),
}

/// Why somebody may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AccessDenied {
    #[error("no credential")]
    Unknown,
    #[error("this route takes an api token; nodes use the routes under /agent")]
    NotForNodes,
    #[error("this route takes a token that a node signed")]
    ForNodesAlone,
    #[error("this takes an api token with the role {}", .0.name())]
    Role(Role),
    #[error("you cannot make or revoke an api token that may do more or lasts longer than yours")]
    MoreThanOwn,
}

impl Action {
    pub const ALL: [Self; 6] = [
        Self::Ask,
        Self::Read,
        Self::Change,
        Self::Grant,
        Self::Configure,
        Self::TakePart,
    ];
}

/// Whether `actor` may do `action` on `object`.
///
/// # Errors
///
/// Why not.
pub fn authorise(actor: Actor, action: Action, object: Object) -> Result<(), AccessDenied> {
    let needed = match action {
        Action::Ask => return Ok(()),
        Action::TakePart => {
            return match actor {
                Actor::Anybody => Err(AccessDenied::Unknown),
                Actor::ApiToken(_) => Err(AccessDenied::ForNodesAlone),
                Actor::Node => Ok(()),
            };
        }
        Action::Read => Role::Viewer,
        Action::Change | Action::Grant => Role::Operator,
        Action::Configure => Role::Owner,
    };
    let own = match actor {
        Actor::Anybody => return Err(AccessDenied::Unknown),
        Actor::Node => return Err(AccessDenied::NotForNodes),
        Actor::ApiToken(own) => own,
    };
    if own.role < needed {
        return Err(AccessDenied::Role(needed));
    }
    let within_own = match object {
        Object::Mesh => true,
        Object::ApiToken(role) => role <= own.role,
        Object::NewApiToken(new) => {
            let ends_in_time = own
                .expires_at
                .is_none_or(|own| new.expires_at.is_some_and(|new| new <= own));
            new.role <= own.role && ends_in_time
        }
    };
    if within_own {
        Ok(())
    } else {
        Err(AccessDenied::MoreThanOwn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 3] = [Role::Viewer, Role::Operator, Role::Owner];

    fn grant(role: Role, expires_at_s: Option<i64>) -> Grant {
        Grant {
            role,
            expires_at: expires_at_s.and_then(|at| DateTime::from_timestamp(at, 0)),
        }
    }

    #[test]
    fn each_actor_may_do_what_this_table_says_and_nothing_else() {
        let actors = [Actor::Anybody, Actor::Node]
            .into_iter()
            .chain(ROLES.map(|role| Actor::ApiToken(grant(role, None))));
        let allowed = actors
            .map(|actor| Action::ALL.map(|action| authorise(actor, action, Object::Mesh).is_ok()));
        let table = [
            // Ask, Read, Change, Grant, Configure, TakePart
            [true, false, false, false, false, false],
            [true, false, false, false, false, true],
            [true, true, false, false, false, false],
            [true, true, true, true, false, false],
            [true, true, true, true, true, false],
        ];
        assert_eq!(allowed.collect::<Vec<_>>(), table);
    }

    #[test]
    fn nobody_makes_or_revokes_more_than_his_own() {
        for own in ROLES {
            for other in ROLES {
                let may = |object| {
                    authorise(Actor::ApiToken(grant(own, None)), Action::Grant, object).is_ok()
                };
                let expected = own >= Role::Operator && other <= own;
                assert_eq!(
                    may(Object::NewApiToken(grant(other, None))),
                    expected,
                    "{own:?} makes {other:?}"
                );
                assert_eq!(
                    may(Object::ApiToken(other)),
                    expected,
                    "{own:?} revokes {other:?}"
                );
            }
        }
        let may = |own, new| {
            let object = Object::NewApiToken(grant(Role::Viewer, new));
            authorise(
                Actor::ApiToken(grant(Role::Owner, own)),
                Action::Grant,
                object,
            )
            .is_ok()
        };
        assert!(
            may(None, None) && may(None, Some(9)) && may(Some(9), Some(9)) && may(Some(9), Some(8))
        );
        assert!(!may(Some(9), None) && !may(Some(9), Some(10)));
    }
}
