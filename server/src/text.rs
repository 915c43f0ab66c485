//! Free text that people see: short, and nothing in it that a terminal or a page would obey rather
//! than show.

use uuid::Uuid;
use wattle_wire::name::Name;

use crate::error::{self, Result};

const LONGEST: usize = 256;

pub(crate) fn check(field: &str, text: &str) -> Result<()> {
    check_within(field, text, LONGEST)
}

/// As [`check`], of a text of at most so many characters.
pub(crate) fn check_within(field: &str, text: &str, longest: usize) -> Result<()> {
    if text.chars().count() > longest {
        return Err(error::invalid(
            "invalid_text",
            field,
            format!("at most {longest} characters"),
        )
        .into());
    }
    if text.chars().any(|c| c.is_control() || is_format(c)) {
        return Err(error::invalid(
            "invalid_text",
            field,
            "no line breaks, control characters or invisible characters",
        )
        .into());
    }
    Ok(())
}

/// Refuses a name that a path could not tell from an id.
pub(crate) fn check_name(name: &Name) -> Result<()> {
    if Uuid::try_parse(name.as_str()).is_ok() {
        return Err(error::invalid(
            "invalid_field",
            "name",
            "this name looks like an id; choose another",
        )
        .into());
    }
    Ok(())
}

/// The characters of Unicode's categories Cf, Zl and Zp, and the fillers and selectors that are not
/// seen either.
fn is_format(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}'
        | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_not_what_it_looks_like_is_refused() {
        assert!(check("description", "Büro in Zürich, 3. Stock (東京)").is_ok());
        for bad in [
            "a\nb",
            "a\tb",
            "a\0b",
            "\u{1b}[31m",
            "a\u{202e}b",
            "a\u{200b}b",
            "\u{feff}a",
            "a\u{2066}b",
            "a\u{85}b",
            "a\u{e0041}",
        ] {
            assert!(check("description", bad).is_err(), "{bad:?}");
        }
        assert!(check("description", &"ü".repeat(256)).is_ok());
        assert!(check("description", &"ü".repeat(257)).is_err());
    }
}
