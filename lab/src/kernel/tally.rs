//! What becomes of the tests, over several machines.

use std::{fmt, mem, time::Instant};

use anyhow::{Result, bail};

/// Begins a line that a job says before a test; the test's name follows.
pub(super) const BEGINS: &str = "lab: begins ";
/// Begins a line that a job says after a test; the code follows with which the test program ended.
pub(super) const ENDS: &str = "lab: ends with ";

/// Tests that ran, of those that were to run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tally {
    expected: usize,
    passed: usize,
    failed: Vec<String>,
}

impl Tally {
    pub(super) fn new(expected: usize) -> Self {
        Self { expected, passed: 0, failed: Vec::new() }
    }

    /// Counts a test, and gives what to say of it: a line, and if it failed its whole output.
    pub(super) fn count(&mut self, Ended { name, passed, seconds, output }: Ended) -> String {
        if passed {
            self.passed += 1;
        } else {
            self.failed.push(name.clone());
        }
        let place = format!("{}/{}", self.passed + self.failed.len(), self.expected);
        let word = if passed { "ok" } else { "FAILED" };
        let line = format!("test {place:>5} {seconds:>5.1} s {name} ... {word}");
        if passed { line } else { format!("{line}\n\n{}\n", output.trim()) }
    }

    /// Whether each test ran and passed.
    pub(super) fn judge(&self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        match self.missing() {
            0 if self.passed == 0 => bail!("not a single test ran"),
            0 => Ok(()),
            missing => bail!("{missing} of {} tests did not run", self.expected),
        }
    }

    fn missing(&self) -> usize {
        self.expected.saturating_sub(self.passed + self.failed.len())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.judge().is_ok() { "ok" } else { "FAILED" };
        write!(f, "test result: {word}. {} passed; {} failed; {} did not run", self.passed, self.failed.len(), self.missing())
    }
}

/// A test of which everything is known.
#[derive(Debug, PartialEq)]
pub(super) struct Ended {
    name: String,
    passed: bool,
    seconds: f64,
    output: String,
}

/// The lines of one machine, which runs one test after another.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    running: Option<(String, Instant)>,
    output: String,
}

impl Transcript {
    /// One more line; with a test's last one comes what became of it. A line of no test is given back.
    pub(super) fn hear<'l>(&mut self, line: &'l str, now: Instant) -> Heard<'l> {
        if let Some(name) = line.strip_prefix(BEGINS) {
            self.output.clear();
            self.running = Some((name.to_owned(), now));
            return Heard::Nothing;
        }
        let Some((name, begin)) = &self.running else { return Heard::Stray(line) };
        let Some(code) = line.strip_prefix(ENDS) else {
            self.output.push_str(line);
            self.output.push('\n');
            return Heard::Nothing;
        };
        // A program that ran nothing ends well, too.
        let passed = code == "0" && self.output.lines().any(|line| line.starts_with("test result: ok. 1 passed; 0 failed; 0 ignored"));
        let seconds = now.saturating_duration_since(*begin).as_secs_f64();
        let ended = Ended { name: name.clone(), passed, seconds, output: mem::take(&mut self.output) };
        self.running = None;
        Heard::Ended(ended)
    }

    /// The test that was running when the machine ended, with what it said until then.
    pub(super) fn last_words(&self) -> Option<String> {
        let (name, _) = self.running.as_ref()?;
        Some(format!("it was running {name}:\n{}", self.output.trim()))
    }
}

/// What a line was.
#[derive(Debug, PartialEq)]
pub(super) enum Heard<'l> {
    Nothing,
    Ended(Ended),
    Stray(&'l str),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(lines: &[&str]) -> Option<Ended> {
        let mut transcript = Transcript::default();
        let now = Instant::now();
        lines.iter().find_map(|line| match transcript.hear(line, now) {
            Heard::Ended(ended) => Some(ended),
            Heard::Nothing | Heard::Stray(_) => None,
        })
    }

    const GOOD: &str = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 1.00s";

    #[test]
    fn a_test_passes_if_it_ran_and_ended_well() {
        for (lines, passed) in [
            ([GOOD, "lab: ends with 0"], true),
            ([GOOD, "lab: ends with 101"], false),
            (["test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured", "lab: ends with 0"], false),
            (["test result: ok. 0 passed; 0 failed; 1 ignored; 0 measured", "lab: ends with 0"], false),
            (["", "lab: ends with 0"], false),
        ] {
            let ended = ended(&["lab: begins a_test", lines[0], lines[1]]).unwrap();
            assert_eq!((ended.name.as_str(), ended.passed), ("a_test", passed), "{lines:?}");
        }
        assert_eq!(ended(&["lab: begins a_test", GOOD]), None);
        assert_eq!(Transcript::default().hear("lab: cannot load", Instant::now()), Heard::Stray("lab: cannot load"));
    }

    #[test]
    fn all_is_well_if_every_test_ran_and_none_failed() {
        let ended = |passed| Ended { name: "a_test".to_owned(), passed, seconds: 1.0, output: "why".to_owned() };
        assert!(Tally::new(0).judge().is_err());
        let mut tally = Tally::new(2);
        assert_eq!(tally.count(ended(true)), "test   1/2   1.0 s a_test ... ok");
        assert!(tally.judge().is_err());
        assert!(tally.to_string().contains("1 passed; 0 failed; 1 did not run"));
        tally.count(ended(true));
        assert!(tally.judge().is_ok());

        let mut tally = Tally::new(1);
        assert!(tally.count(ended(false)).ends_with("FAILED\n\nwhy\n"));
        assert!(tally.judge().is_err());
    }
}
