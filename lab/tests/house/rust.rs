//! Reads Rust, as far as the checks need it.

use std::collections::BTreeSet;

use crate::{File, file};

/// Leaves out files named `tests.rs`, files in a folder `tests`, files that are declared with
/// `#[cfg(test)]`, and generated ones.
pub(crate) fn without_tests(files: Vec<File>) -> Vec<File> {
    let mut tests = BTreeSet::new();
    for file in &files {
        let stem = file.path.trim_end_matches(".rs");
        let ends = ["/lib", "/main", "/mod"];
        let inside = ends
            .iter()
            .find_map(|end| stem.strip_suffix(end))
            .unwrap_or(stem);
        let (_, modules) = outside_of_tests(&tokens(&file.code));
        tests.extend(
            modules
                .into_iter()
                .map(|module| format!("{inside}/{module}")),
        );
    }
    let is_test = |path: &str| {
        let path = path.trim_end_matches(".rs");
        let mut above = path.match_indices('/').map(|(at, _)| &path[..at]);
        path.split('/').any(|part| part == "tests")
            || tests.contains(path)
            || above.any(|folder| tests.contains(folder))
    };
    let is_generated = |text: &str| text.lines().take(5).any(|line| line.contains("@generated"));
    let is_checked = |file: &File| !is_test(&file.path) && !is_generated(&file.text);
    files.into_iter().filter(is_checked).collect()
}

/// The code with spaces in place of comments and literals. Lines keep their numbers.
pub(crate) fn masked(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let Some(end) = quoted_until(&chars, at) else {
            // A whole word: a `b` or `r` at its end is no prefix of a string.
            let word = chars[at..]
                .iter()
                .take_while(|c| is_word(**c))
                .count()
                .max(1);
            code.extend(&chars[at..at + word]);
            at += word;
            continue;
        };
        code.extend(
            chars[at..end]
                .iter()
                .map(|c| if *c == '\n' { '\n' } else { ' ' }),
        );
        at = end;
    }
    code
}

/// Where the comment, string or character ends that begins here.
fn quoted_until(chars: &[char], at: usize) -> Option<usize> {
    if !['/', '"', '\'', 'b', 'c', 'r'].contains(&chars[at]) {
        return None;
    }
    let starts = |at: usize, with: &str| {
        with.chars()
            .enumerate()
            .all(|(index, c)| chars.get(at + index) == Some(&c))
    };
    let end_of = |from: usize, end: &str| {
        let found = (from..chars.len()).find(|at| starts(*at, end));
        found.map_or(chars.len(), |at| at + end.len())
    };
    if starts(at, "//") {
        return Some(
            (at..chars.len())
                .find(|at| chars[*at] == '\n')
                .unwrap_or(chars.len()),
        );
    }
    if starts(at, "/*") {
        let (mut depth, mut at) = (1, at + 2);
        while depth > 0 && at < chars.len() {
            let (step, change) = if starts(at, "/*") {
                (2, 1)
            } else if starts(at, "*/") {
                (2, -1)
            } else {
                (1, 0)
            };
            (at, depth) = (at + step, depth + change);
        }
        return Some(at);
    }
    let escaped = |mut at: usize, end: char| {
        while at < chars.len() && chars[at] != end {
            at += if chars[at] == '\\' { 2 } else { 1 };
        }
        (at + 1).min(chars.len())
    };
    let prefix = chars[at..]
        .iter()
        .take_while(|c| ['b', 'c', 'r'].contains(c))
        .count()
        .min(2);
    let quote = at + prefix;
    if prefix > 0 && chars[quote - 1] == 'r' {
        let hashes = chars[quote..].iter().take_while(|c| **c == '#').count();
        if starts(quote + hashes, "\"") {
            return Some(end_of(
                quote + hashes + 1,
                &format!("\"{}", "#".repeat(hashes)),
            ));
        }
    }
    if starts(quote, "\"") {
        return Some(escaped(quote + 1, '"'));
    }
    let is_character = starts(quote, "'") && (starts(quote + 1, "\\") || starts(quote + 2, "'"));
    is_character.then(|| escaped(quote + 1, '\''))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A word, `::`, or a single sign, with its line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) line: usize,
}

impl Token<'_> {
    pub(crate) fn is_word(self) -> bool {
        self.text.starts_with(is_word)
    }
}

pub(crate) fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (line, number) in code.lines().zip(1..) {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let length = match first {
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                ':' if rest.starts_with("::") => 2,
                _ => first.len_utf8(),
            };
            tokens.push(Token {
                text: &rest[..length],
                line: number,
            });
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

/// The tokens without items under `#[cfg(test)]`, and which modules among these have files.
pub(crate) fn outside_of_tests<'a>(tokens: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    let (mut outside, mut modules) = (Vec::with_capacity(tokens.len()), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        let after = end_of_attribute(tokens, at);
        let attribute = &tokens[at..after];
        let has = |word: &str| attribute.iter().any(|token| token.text == word);
        if !(has("cfg") && has("test") && !has("not")) {
            outside.extend(&tokens[at..after.max(at + 1)]);
            at = after.max(at + 1);
            continue;
        }
        let mut item = after;
        while end_of_attribute(tokens, item) > item {
            item = end_of_attribute(tokens, item);
        }
        let end = end_of_item(tokens, item);
        let mut threes = tokens[item..end].windows(3);
        if let Some(three) = threes.find(|three| three[0].text == "mod" && three[2].text == ";") {
            modules.push(three[1].text);
        }
        at = end;
    }
    (outside, modules)
}

/// Where the attribute ends that begins here; `at` if there is none.
fn end_of_attribute(tokens: &[Token<'_>], at: usize) -> usize {
    let begins = |at: usize, with: &str| tokens.get(at).is_some_and(|token| token.text == with);
    let open = at + 1 + usize::from(begins(at + 1, "!"));
    if begins(at, "#") && begins(open, "[") {
        end_of_brackets(tokens, open)
    } else {
        at
    }
}

/// Where the item ends that begins here: after its `;`, or after its braces.
pub(crate) fn end_of_item(tokens: &[Token<'_>], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text {
            ";" => return at + 1,
            "}" => return at,
            "(" | "[" => at = end_of_brackets(tokens, at),
            "{" => {
                let end = end_of_brackets(tokens, at);
                return end + usize::from(tokens.get(end).is_some_and(|token| token.text == ";"));
            }
            _ => at += 1,
        }
    }
    at
}

/// Where the brackets end that open here.
pub(crate) fn end_of_brackets(tokens: &[Token<'_>], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

#[test]
fn tests_and_generated_code_are_left_out() {
    let root = "
        #[cfg(any(test, fuzzing))]
        #[expect(dead_code)]
        mod testing;
        #[cfg(not(test))]
        mod real;
        mod psk;";
    let files = vec![
        file("mesh/src/lib.rs", root),
        file("mesh/src/testing.rs", ""),
        file("mesh/src/real.rs", ""),
        file(
            "mesh/src/psk.rs",
            "#[cfg(test)]\nuse std::{fs, io};\n#[cfg(test)]\nmod model;",
        ),
        file("mesh/src/psk/model.rs", ""),
        file("mesh/src/psk/model/inner.rs", ""),
        file("mesh/src/psk/tests.rs", ""),
        file("mesh/src/made.rs", "// @generated by a tool"),
    ];
    let left: Vec<_> = without_tests(files)
        .into_iter()
        .map(|file| file.path)
        .collect();
    assert_eq!(
        left,
        ["mesh/src/lib.rs", "mesh/src/real.rs", "mesh/src/psk.rs"]
    );
}

#[test]
fn comments_and_literals_are_no_code() {
    let text = r###"
        let a = "\"x"; let b = r#""x"#; let c = '"'; let d: &'a str = b"\\";
        /* x /* */ x */ e // x
        f"###;
    let code = masked(text);
    let words = tokens(&code).into_iter().filter(|token| token.is_word());
    let words: Vec<_> = words.map(|token| token.text).collect();
    assert_eq!(
        words,
        [
            "let", "a", "let", "b", "let", "c", "let", "d", "a", "str", "e", "f"
        ]
    );
}
