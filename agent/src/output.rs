//! What people and scripts read on standard output and standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use anstyle::AnsiColor;

/// Prints a line on standard output. A reader that has gone away is no error: `wattle-agent status
/// | head` is fine.
pub(crate) fn line(text: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Prints an error with all its causes on standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(io::stderr().lock(), "error: {error:#}");
}

/// Tells a person who waits what is being done, where one looks: on standard error, if it is a
/// terminal.
pub(crate) fn progress(text: impl Display) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        let _ = writeln!(stderr, "{text}…");
    }
}

/// Prints a value as JSON on standard output.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A text in green on a terminal, as it is elsewhere.
pub(crate) fn green(text: &str) -> String {
    coloured(AnsiColor::Green, text)
}

/// A text in yellow on a terminal, as it is elsewhere.
pub(crate) fn yellow(text: &str) -> String {
    coloured(AnsiColor::Yellow, text)
}

/// A text in red on a terminal, as it is elsewhere.
pub(crate) fn red(text: &str) -> String {
    coloured(AnsiColor::Red, text)
}

fn coloured(colour: AnsiColor, text: &str) -> String {
    if has_colour() {
        let style = colour.on_default();
        format!("{style}{text}{style:#}")
    } else {
        text.to_owned()
    }
}

/// Whether colours are wanted on standard output. Who sets `NO_COLOR` wants none: no-color.org.
pub(crate) fn has_colour() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A number of bytes for people: `1.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "one digit after the point is shown"
    )]
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// A length of time for people: `1 min 5 s`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1024), bytes(1_500_000)],
            ["0 B", "1023 B", "1.0 KiB", "1.4 MiB"]
        );
        assert_eq!(
            [age(59), age(65), age(3700), age(90_000)],
            ["59 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]
        );
    }
}
