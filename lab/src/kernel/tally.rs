//! The count of tests over several programs.

use std::fmt;

use anyhow::{Result, bail};

/// What the programs said that became of their tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
}

impl Tally {
    /// Whether the line is a program's result, `test result: ok. 2 passed; 0 failed; 0 ignored; …`, which is then part of this one.
    pub(super) fn counts(&mut self, line: &str) -> bool {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|result| result.split_once(". ")) else { return false };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let number: u32 = number.parse().unwrap_or(0);
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
        true
    }

    /// Whether all is well: `code` is what the job ended with.
    pub(super) fn judge(&self, code: u8) -> Result<()> {
        match self {
            Self { passed: 0, failed: 0, .. } => bail!("not a single test ran"),
            Self { failed: 0, ignored: 0, .. } if code == 0 => Ok(()),
            Self { failed: 0, ignored: 0, .. } => bail!("the tests ended with {code}"),
            _ => bail!("tests failed or were ignored"),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.judge(0).is_ok() { "ok" } else { "FAILED" };
        let Self { passed, failed, ignored } = self;
        write!(f, "\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_add_up_and_one_failure_is_a_failure() {
        let mut tally = Tally::default();
        assert!(tally.judge(0).is_err());
        assert!(!tally.counts("test a_name ... ok"));
        assert!(tally.counts("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out; finished in 0.00s"));
        assert!(tally.judge(0).is_err());
        assert!(tally.counts("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s"));
        assert!(tally.judge(0).is_ok());
        assert!(tally.judge(1).is_err());
        assert!(tally.counts("test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s"));
        assert_eq!(tally, Tally { passed: 3, failed: 1, ignored: 0 });
        assert!(tally.judge(0).is_err());
    }
}
