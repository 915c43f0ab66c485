//! ML-KEM-768 against known answers.

use ml_kem::KeyExport;
use shake::{ExtendableOutput, Shake128, Update, XofReader};

use super::seeded::{TheirSecret, ours};

/// SHAKE128 of what a hundred rounds give: the accumulated vectors for FIPS 203 of
/// <https://c2sp.org/CCTV/ML-KEM>, without decapsulation keys, as `TestAccumulated` of Go's
/// `crypto/mlkem` has them.
const ACCUMULATED: &str = "1114b1b6699ed191734fa339376afa7e285c9e6acf6ff0177d346696ce564415";
const ROUNDS: usize = 100;

#[test]
fn decapsulation_gives_the_known_answers_of_fips_203() {
    let mut random = Shake128::default().finalize_xof();
    let mut results = Shake128::default();
    for _ in 0..ROUNDS {
        let (mut seed, mut message, mut garbage) = ([0; 64], [0; 32], [0; 1088]);
        random.read(&mut seed);
        random.read(&mut message);
        random.read(&mut garbage);
        // Ours takes no random numbers, so theirs makes the key and the ciphertext, which the
        // answers cover, too.
        let secret = TheirSecret::from_seed(seed.into());
        let (ciphertext, shared) = secret
            .encapsulation_key()
            .encapsulate_deterministic(&message.into());
        let ciphertext: [u8; 1088] = ciphertext.as_slice().try_into().unwrap();
        let found = ours(&secret).decapsulate(&ciphertext.into()).unwrap();
        assert_eq!(*found, *shared);
        // A ciphertext that nobody made for the key gives a secret that nobody knows.
        let rejected = ours(&secret).decapsulate(&garbage.into()).unwrap();
        results.update(&secret.encapsulation_key().to_bytes());
        results.update(&ciphertext);
        results.update(&*found);
        results.update(&*rejected);
    }
    let mut sum = [0; 32];
    results.finalize_xof().read(&mut sum);
    assert_eq!(sum.map(|byte| format!("{byte:02x}")).concat(), ACCUMULATED);
}
