use jsonwebtoken::{DecodingKey, Validation};
use uuid::Uuid;
use wattle_wire::ids::{NodeId, SiteId};

use super::*;
use crate::testing::{CHALLENGE_SECRET, MESH, challenge_of};

#[test]
fn keys_that_were_kept_are_the_same_and_debug_hides_them() {
    let made = NodeKeys::new(&[1; 32], &[2; 32], 5).unwrap();
    let kept = NodeKeys::restore(&made.kept().unwrap()).unwrap();
    assert_eq!(
        (made.identity_key(), made.wireguard_key()),
        (kept.identity_key(), kept.wireguard_key())
    );
    assert_eq!((kept.sequence(), kept.since()), (1, 5));
    assert_eq!(
        format!("{made:?}"),
        format!("NodeKeys({})", made.wireguard_key())
    );
}

fn announced_by(node_keys: &NodeKeys) -> Statement {
    let claim = node_keys.announcement(MESH, &challenge_of(0)).unwrap();
    let key = enrolment::announced(&claim.announcement)
        .unwrap()
        .wireguard_key;
    assert_eq!(
        enrolment::check_announced(&claim, key, &CHALLENGE_SECRET, 0),
        Ok(())
    );
    enrolment::verify_announcement(&claim.announcement, MESH).unwrap()
}

#[test]
fn the_next_key_is_taken_up_whole_or_not_at_all_and_no_number_is_used_twice() {
    let before = NodeKeys::new(&[1; 32], &[2; 32], 5).unwrap();
    let preparing = before.preparing(&[3; 32]).unwrap();
    assert_eq!(
        (preparing.wireguard_key(), preparing.sequence()),
        (before.wireguard_key(), 1)
    );
    let announced = announced_by(&preparing);
    assert_eq!(
        (Some(announced.wireguard_key), announced.sequence),
        (preparing.next_key(), 2)
    );

    let stayed = NodeKeys::restore(&preparing.staying().unwrap().kept().unwrap()).unwrap();
    assert_eq!(
        (stayed.wireguard_key(), stayed.next_key()),
        (before.wireguard_key(), None)
    );
    let again = stayed.preparing(&[4; 32]).unwrap();
    let announced = announced_by(&again);
    assert_eq!(announced.sequence, 3);

    let after = again.switched(9).unwrap();
    assert_eq!(
        (Some(after.wireguard_key()), after.next_key(), after.since()),
        (again.next_key(), None, 9)
    );
    let statement = after.statement(MESH).unwrap();
    assert_eq!(enrolment::verify_statement(&statement, MESH), Ok(announced));
    let above = after.numbering_above(8).unwrap();
    assert_eq!(
        (
            above.sequence(),
            above.preparing(&[5; 32]).unwrap().issued()
        ),
        (3, 9)
    );
    assert_eq!(after.numbering_above(1).unwrap().issued(), 3);
    let lied_to = after.numbering_above(u64::MAX).unwrap();
    assert_eq!(lied_to.issued(), 3 + LARGEST_STEP, "numbers are left");
    assert_ne!(
        before.canary_psk(after.wireguard_key()),
        after.canary_psk(after.wireguard_key())
    );
}

#[test]
fn the_next_identity_is_signed_for_by_the_present_one_and_taken_up_whole_or_not_at_all() {
    let before = NodeKeys::new(&[1; 32], &[2; 32], 5).unwrap();
    assert_eq!(
        (
            before.next_identity_statement(MESH).unwrap(),
            before.successor()
        ),
        (None, None)
    );
    let succeeding =
        NodeKeys::restore(&before.preparing_identity(&[3; 32]).unwrap().kept().unwrap()).unwrap();
    assert_eq!(
        (succeeding.identity_key(), succeeding.sequence()),
        (before.identity_key(), 1)
    );
    let told = succeeding.next_identity_statement(MESH).unwrap().unwrap();
    let after =
        NodeKeys::restore(&succeeding.identity_switched(MESH).unwrap().kept().unwrap()).unwrap();
    assert_eq!(
        after.statement(MESH).unwrap(),
        told,
        "it is what was told, after a restart, too"
    );
    assert_eq!(
        (Some(after.identity_key()), after.wireguard_key()),
        (succeeding.successor(), before.wireguard_key())
    );
    let statement = enrolment::verify_statement(&told, MESH).unwrap();
    assert_eq!(
        (statement.identity, statement.sequence),
        (after.identity_key(), 2)
    );
    assert!(
        enrolment::is_or_was(&statement, before.identity_key())
            && after.has_predecessors()
            && after.successor().is_none()
    );
}

#[test]
fn a_former_identity_counts_only_where_each_signed_for_the_next_and_the_oldest_are_dropped() {
    let mut node_keys = NodeKeys::new(&[1; 32], &[2; 32], 5).unwrap();
    let mut identities = vec![node_keys.identity_key()];
    for number in 0..Statement::MOST_PREDECESSORS + 2 {
        node_keys = node_keys
            .preparing_identity(&[u8::try_from(number).unwrap() + 10; 32])
            .unwrap()
            .identity_switched(MESH)
            .unwrap();
        identities.push(node_keys.identity_key());
    }
    let statement = enrolment::verify_statement(&node_keys.statement(MESH).unwrap(), MESH).unwrap();
    let counts: Vec<_> = identities
        .iter()
        .map(|identity| enrolment::is_or_was(&statement, *identity))
        .collect();
    assert_eq!(
        counts.iter().position(|counts| *counts),
        Some(2),
        "{counts:?}"
    );
    assert!(counts[2..].iter().all(|counts| *counts));

    let resigned = |change: &dyn Fn(&mut Vec<Predecessor>)| {
        let mut statement = statement.clone();
        change(&mut statement.predecessors);
        enrolment::verify_statement(
            &enrolment::sign_statement(&statement, &node_keys.identity.pair).unwrap(),
            MESH,
        )
        .map(drop)
    };
    assert_eq!(resigned(&|_| ()), Ok(()));
    for (change, what) in [
        (
            (&|all: &mut Vec<_>| all.swap(3, 4)) as &dyn Fn(&mut Vec<Predecessor>),
            "another order",
        ),
        (&|all| all.truncate(15), "no word of the last one"),
        (&|all| all.insert(0, all[0].clone()), "too many"),
    ] {
        assert_eq!(
            resigned(change),
            Err(enrolment::InvalidStatement::Predecessor),
            "{what}"
        );
    }
    let stranger = NodeKeys::new(&[99; 32], &[2; 32], 5).unwrap();
    let forged = Statement {
        identity: stranger.identity_key(),
        ..statement.clone()
    };
    let forged = enrolment::sign_statement(&forged, &stranger.identity.pair).unwrap();
    assert_eq!(
        enrolment::verify_statement(&forged, MESH),
        Err(enrolment::InvalidStatement::Predecessor)
    );
}

fn enrolled() -> Enrolled {
    let name: wattle_wire::name::Name = "dublin".parse().unwrap();
    Enrolled {
        mesh: MESH,
        node: NodeId(Uuid::from_u128(2)),
        name: name.clone(),
        site: name,
        site_id: SiteId(Uuid::from_u128(4)),
        generation: 3,
    }
}

#[test]
fn a_token_is_used_again_until_it_is_about_to_end_or_the_clock_is_set_back() {
    let node_keys = NodeKeys::new(&[1; 32], &[2; 32], 0).unwrap();
    let enrolled = enrolled();
    let mut held = HeldToken::default();
    let mut at = |now| {
        held.at(now, &node_keys, &enrolled)
            .unwrap()
            .reveal()
            .to_owned()
    };
    let made_at = |now| node_keys.token(&enrolled, now).unwrap().reveal().to_owned();
    assert_eq!([at(1000), at(1239)], [made_at(1000), made_at(1000)]);
    assert_eq!([at(1240), at(1100)], [made_at(1240), made_at(1100)]);
}

#[test]
fn a_token_verifies_with_the_identity_and_names_the_node() {
    let node_keys = NodeKeys::new(&[1; 32], &[2; 32], 0).unwrap();
    let enrolled = enrolled();
    let token = node_keys.token(&enrolled, 1_800_000_000).unwrap();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&[MESH]);
    // Time is the coordinator's part.
    validation.validate_exp = false;
    let key = DecodingKey::from_ed_der(node_keys.identity_key().as_bytes());
    let decoded = jsonwebtoken::decode::<NodeClaims>(token.reveal(), &key, &validation).unwrap();
    assert_eq!(decoded.header.typ.as_deref(), Some(NODE_TOKEN_TYPE));
    assert_eq!(
        (
            decoded.claims.sub,
            decoded.claims.generation,
            decoded.claims.exp
        ),
        (enrolled.node, 3, 1_800_000_300)
    );
}
