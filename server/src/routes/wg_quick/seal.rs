//! Sealing a preshared key for the gateway at the other end: HPKE, with random numbers.

use rustls::crypto::hpke::{Hpke, HpkePublicKey};
use wattle_mesh::keys::psk::{
    Psk,
    given::{Given, PURPOSE, SUITE},
};
use wattle_wire::key::SealedPsk;

/// Seals a key. `None` when there are no random numbers.
pub(super) fn seal(given: &Given, psk: &Psk) -> Option<SealedPsk> {
    let key = HpkePublicKey(given.to.1.as_bytes().to_vec());
    let (encapsulated, ciphertext) = SUITE
        .seal(PURPOSE, &given.bound(), psk.reveal(), &key)
        .ok()?;
    <[u8; 80]>::try_from([encapsulated.0, ciphertext].concat())
        .ok()
        .map(SealedPsk::from)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use wattle_mesh::keys::node_keys::NodeKeys;
    use wattle_wire::ids::{MeshId, NodeId};

    use super::*;

    #[test]
    fn a_key_is_sealed_by_another_secret_each_time_and_opens_for_its_node() {
        let machine = |number| NodeKeys::new(&[number; 32], &[number; 32], 0).unwrap();
        let end = |number: u8| {
            let node = NodeId(Uuid::from_u128(number.into()));
            (node, machine(number).wireguard_key())
        };
        let given = Given {
            mesh: MeshId(Uuid::from_u128(7)),
            from: end(1),
            to: end(2),
            made_ms: 7,
        };
        let psk = Psk::new([9; 32]);
        let [first, second] = [(); 2].map(|()| seal(&given, &psk).unwrap());
        assert!(first != second);
        let open = |sealed, number| given.open(sealed, &machine(number).wireguard_private_key());
        assert!(open(&first, 2) == Some(psk.clone()) && open(&second, 2) == Some(psk));
        assert!(open(&first, 1).is_none());
    }
}
