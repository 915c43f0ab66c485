//! Free text that people see: short, and nothing in it that a terminal or a page would obey rather
//! than show.

use uuid::Uuid;
use wattle_wire::{name::Name, text::is_unseen};

use crate::error::{self, ErrorCode, Result};

const LONGEST: usize = 256;

pub(crate) fn check(field: &str, text: &str) -> Result<()> {
    check_within(field, text, LONGEST)
}

/// As [`check`], of a text of at most so many characters.
pub(crate) fn check_within(field: &str, text: &str, longest: usize) -> Result<()> {
    if text.chars().count() > longest {
        return Err(error::invalid(
            ErrorCode::InvalidText,
            field,
            format!("at most {longest} characters"),
        )
        .into());
    }
    if text.contains(is_unseen) {
        return Err(error::invalid(
            ErrorCode::InvalidText,
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
            ErrorCode::InvalidField,
            "name",
            "this name looks like an id; choose another",
        )
        .into());
    }
    Ok(())
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
