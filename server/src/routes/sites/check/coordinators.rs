//! Subnets that hold a coordinator: gateways of other sites would look for it in the tunnel, and not
//! hear of the change that takes the subnet back.

use std::collections::BTreeSet;

use wattle_wire::{
    admin::Warning,
    problem::{Holder, ProblemDetails},
    subnet::Subnet,
};

use crate::{
    error::{self, ErrorCode, Result},
    state::coordinators::CoordinatorAddress,
};

/// The code of the problem and of the warning.
const HOLDS_COORDINATOR: ErrorCode = ErrorCode::SubnetHoldsCoordinator;
const HOLDS_OWN_ADDRESS: &str = "subnet_holds_own_address";

/// What is to be said of a site's subnets that hold a coordinator.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    /// Whether it would have been refused.
    pub(crate) is_forced: bool,
    pub(crate) warnings: Vec<Warning>,
}

/// Judges the subnets of a site that has had some of them `before`.
///
/// # Errors
///
/// 409 when a new one holds an address at which agents look for a coordinator, unless it is forced.
pub(crate) fn judge(
    subnets: &[Subnet],
    before: &[Subnet],
    coordinators: &BTreeSet<CoordinatorAddress>,
    force: bool,
) -> Result<Judged> {
    let mut judged = Judged::default();
    for (index, subnet) in subnets.iter().enumerate() {
        let mut held = coordinators.iter().filter(|at| at.is_in(subnet.net()));
        let Some(first) = held.next() else { continue };
        let Some((at, host)) = std::iter::once(first)
            .chain(held)
            .find_map(|at| Some((at, at.host.as_deref()?)))
        else {
            judged.warnings.push(own_address(*subnet, first));
            continue;
        };
        let detail = said(*subnet, at, host);
        let is_new = !before.contains(subnet);
        if is_new && !force {
            return Err(refused(index, at, &detail).into());
        }
        judged.is_forced |= is_new;
        judged.warnings.push(Warning {
            code: HOLDS_COORDINATOR.as_str().to_owned(),
            detail,
        });
    }
    Ok(judged)
}

fn said(subnet: Subnet, at: &CoordinatorAddress, host: &str) -> String {
    let address = at.address;
    let place = if at.is_literal() {
        address.to_string()
    } else {
        format!("{address}, the address of {host}")
    };
    format!(
        "{subnet} holds {place}, where gateways reach the coordinator, which must be outside of the \
         mesh"
    )
}

fn refused(index: usize, at: &CoordinatorAddress, detail: &str) -> ProblemDetails {
    let detail = format!("{detail}. If gateways find it elsewhere, add `?force=true`");
    let holder = Holder {
        site: "mesh".to_owned(),
        holds: at.address.to_string(),
    };
    error::taken(
        HOLDS_COORDINATOR,
        &format!("subnets[{index}]"),
        detail,
        Some(holder),
    )
}

fn own_address(subnet: Subnet, at: &CoordinatorAddress) -> Warning {
    let detail = format!(
        "{subnet} holds {}, which an interface of a coordinator has. Gateways of other sites must \
         reach the coordinator at another address, such as that of a port forward",
        at.address
    );
    Warning {
        code: HOLDS_OWN_ADDRESS.to_owned(),
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn at(address: &str, host: Option<&str>) -> CoordinatorAddress {
        CoordinatorAddress {
            address: address.parse().unwrap(),
            host: host.map(str::to_owned),
        }
    }

    /// The problem's field and detail, or the codes of the warnings and whether it was forced.
    fn judged(
        subnets: &[&str],
        before: &[&str],
        force: bool,
    ) -> Result<(Vec<String>, bool), (String, String)> {
        let coordinators = BTreeSet::from([
            at("10.50.0.1", Some("10.50.0.1")),
            at("fd50::1", Some("wattle.example")),
            at("10.60.0.1", None),
            at("198.18.0.2", None),
            at("198.18.0.2", Some("wattle.example")),
        ]);
        let parsed = |texts: &[&str]| -> Vec<Subnet> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        match judge(&parsed(subnets), &parsed(before), &coordinators, force) {
            Ok(Judged {
                is_forced,
                warnings,
            }) => {
                let codes = warnings.into_iter().map(|warning| warning.code).collect();
                Ok((codes, is_forced))
            }
            Err(Error::Refused(problem)) => {
                assert_eq!(
                    (problem.status, &*problem.code),
                    (409, HOLDS_COORDINATOR.as_str())
                );
                Err((problem.field.unwrap(), problem.detail.unwrap()))
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_subnet_with_a_coordinator_is_refused_and_an_old_or_forced_one_is_warned_of() {
        let none = Ok((vec![], false));
        assert_eq!(judged(&["10.51.0.0/16"], &[], false), none);
        let warned = |code: &str, is_forced| Ok((vec![code.to_owned()], is_forced));
        for (subnet, named) in [
            ("10.50.0.0/16", "holds 10.50.0.1, where"),
            (
                "fd50::/64",
                "holds fd50::1, the address of wattle.example, where",
            ),
            (
                "198.18.0.0/24",
                "holds 198.18.0.2, the address of wattle.example, where",
            ),
        ] {
            let (field, detail) = judged(&["10.51.0.0/16", subnet], &[], false).unwrap_err();
            assert_eq!(field, "subnets[1]");
            assert!(detail.contains(named), "{detail}");
            assert_eq!(
                judged(&[subnet], &[], true),
                warned(HOLDS_COORDINATOR.as_str(), true)
            );
            assert_eq!(
                judged(&[subnet], &[subnet], false),
                warned(HOLDS_COORDINATOR.as_str(), false)
            );
        }
        assert_eq!(
            judged(&["10.60.0.0/16"], &[], false),
            warned(HOLDS_OWN_ADDRESS, false)
        );
    }
}
