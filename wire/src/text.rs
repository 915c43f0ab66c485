//! Free text that people see, and what in it a terminal or a page would obey rather than show.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write},
};

/// Whether a character is not seen where it stands.
///
/// Those are the control characters, Unicode's categories Cf, Zl and Zp, and the fillers and
/// selectors. Escape sequences begin with such characters, new lines are such, and so are the marks
/// that turn the direction of what is read.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// The text on one line, with all that is not seen written as Rust writes it: `\n`, `\u{1b}`.
pub fn visible(text: &str) -> Cow<'_, str> {
    replaced(text, is_unseen, |c, text| text.extend(c.escape_default()))
}

/// JSON that means the same and holds nothing that is not seen but its own line breaks.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    // JSON itself escapes the first 32, and has none of the others outside of its texts.
    let is_to_go = |c: char| c >= '\u{7f}' && is_unseen(c);
    replaced(json, is_to_go, |c, json| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a string cannot fail.
            let _ = write!(json, "\\u{unit:04x}");
        }
    })
}

fn replaced(
    text: &str,
    is_to_go: impl Fn(char) -> bool,
    replace: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    if !text.contains(&is_to_go) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_to_go(c) {
            replace(c, &mut safe);
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// A writer of JSON, a whole value at a time, that writes it as [`visible_json`] has it.
#[derive(Debug)]
pub struct JsonWriter<W>(pub W);

impl<W: Write> Write for JsonWriter<W> {
    fn write(&mut self, json: &[u8]) -> io::Result<usize> {
        match str::from_utf8(json) {
            Ok(text) => self.0.write_all(visible_json(text).as_bytes())?,
            Err(_) => self.0.write_all(json)?,
        }
        Ok(json.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "a\u{1b}[2J\u{1b}]0;t\u{7}b\nc\r\u{9b}31m\u{202e}d\u{2066}\u{200f}\u{61c}\u{7f}";

    #[test]
    fn d11_what_a_terminal_would_obey_is_written_out_and_the_rest_stays() {
        assert_eq!(
            visible(HOSTILE),
            "a\\u{1b}[2J\\u{1b}]0;t\\u{7}b\\nc\\r\\u{9b}31m\\u{202e}d\\u{2066}\\u{200f}\
             \\u{61c}\\u{7f}"
        );
        let plain = "Büro in Zürich: \"10 %\" \\ 東京 ✓ – …";
        assert!(matches!(visible(plain), Cow::Borrowed(same) if same == plain));
    }

    #[test]
    fn d11_json_means_the_same_without_what_is_not_seen() {
        let value = serde_json::json!({ "a": HOSTILE, "b\u{e0041}": ["ü", "\u{85}"] });
        let json = serde_json::to_string_pretty(&value).unwrap();
        let safe = visible_json(&json);
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            value
        );
        assert!(!safe.chars().any(|c| c != '\n' && is_unseen(c)), "{safe}");

        let mut written = JsonWriter(Vec::new());
        written.write_all(json.as_bytes()).unwrap();
        assert_eq!(written.0, safe.as_bytes());
    }
}
