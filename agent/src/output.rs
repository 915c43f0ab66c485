//! What people and scripts read on standard output and standard error.
//!
//! Much of it is what a coordinator or another gateway said. So nothing of any text reaches the
//! terminal that a terminal would obey: it is written out, here and nowhere else.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use anstyle::AnsiColor;
use comfy_table::{CellAlignment, Color, ColumnConstraint, presets};
use wattle_wire::text::{visible, visible_json};

/// Prints a line on standard output. A reader that has gone away is no error: `wattle-agent status
/// | head` is fine.
pub(crate) fn line(text: impl Display) {
    print(&visible(&text.to_string()));
}

/// Prints a line whose beginning has a colour on a terminal.
pub(crate) fn marked_line(colour: AnsiColor, beginning: impl Display, rest: impl Display) {
    let (beginning, rest) = (beginning.to_string(), rest.to_string());
    let (beginning, rest) = (visible(&beginning), visible(&rest));
    if has_colour() {
        let style = colour.on_default();
        print(&format!("{style}{beginning}{style:#}{rest}"));
    } else {
        print(&format!("{beginning}{rest}"));
    }
}

/// Prints an error with all its causes on standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let error = format!("{error:#}");
    let _ = writeln!(io::stderr().lock(), "error: {}", visible(&error));
}

/// Tells a person who waits what is being done, where one looks: on standard error, if it is a
/// terminal.
pub(crate) fn progress(text: impl Display) {
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        let _ = writeln!(stderr, "{}…", visible(&text.to_string()));
    }
}

/// Prints a value as JSON on standard output.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&visible_json(&serde_json::to_string_pretty(value)?));
    Ok(())
}

fn print(safe: &str) {
    let _ = writeln!(io::stdout().lock(), "{safe}");
}

/// Lines with columns.
#[derive(Debug)]
pub(crate) struct Table(comfy_table::Table);

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        if !has_colour() {
            table.force_no_tty();
        }
        table.set_header(header);
        if let Some(column) = table.column_mut(0) {
            column.set_padding((0, 1));
        }
        Self(table)
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.0.add_row(cells.into_iter().map(|cell| cell.0));
    }

    pub(crate) fn align_right(&mut self, columns: &[usize]) {
        for column in columns {
            if let Some(column) = self.0.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }

    pub(crate) fn hide(&mut self, column: usize) {
        if let Some(column) = self.0.column_mut(column) {
            column.set_constraint(ColumnConstraint::Hidden);
        }
    }

    pub(crate) fn print(&self) {
        print(&self.0.to_string());
    }
}

/// What one line of a table has in one column.
#[derive(Debug)]
pub(crate) struct Cell(comfy_table::Cell);

impl Cell {
    pub(crate) fn new(text: impl Display) -> Self {
        Self(comfy_table::Cell::new(visible(&text.to_string())))
    }

    pub(crate) fn coloured(text: impl Display, colour: Color) -> Self {
        let Self(cell) = Self::new(text);
        Self(cell.fg(colour))
    }
}

/// Whether colours are wanted on standard output. Who sets `NO_COLOR` wants none: no-color.org.
fn has_colour() -> bool {
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
