//! Checks of the code's form: widths of lines, lengths of files and functions, names of types,
//! circles of modules, and links in the pages.
//!
//! Tests and generated code are not checked. Each check is a function over texts of files, and a
//! test beside it shows it failing on a small sample.

mod circles;
mod rust;

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use crate::{
    circles::{arrows, between_top_level, circles},
    rust::{end_of_item, masked, outside_of_tests, tokens, without_tests},
};

/// The widest line, in columns.
const WIDEST: usize = 100;
/// How many of a thousand lines may be wider.
const WIDER_PER_MILLE: usize = 5;
/// The longest file, in lines.
const LONGEST: usize = 600;
/// The most lines of half of the functions, from `fn` to the closing brace.
const MEDIAN: usize = 10;
/// How many offenders a message lists.
const LISTED: usize = 60;
/// What a type is declared with.
const TYPES: [&str; 5] = ["struct", "enum", "union", "trait", "type"];

#[test]
fn lines_have_at_most_100_columns() {
    let wide = wide_lines(&HOUSE.code);
    let lines: usize = HOUSE
        .code
        .iter()
        .map(|file| file.text.lines().count())
        .sum();
    let allowed = lines * WIDER_PER_MILLE / 1000;
    let found = wide.len();
    let title = format!("{found} of {lines} lines exceed {WIDEST} columns; {allowed} may");
    assert!(wide.len() <= allowed, "{}", told(&title, &wide));
}

#[test]
fn the_changelog_begins_with_this_version() {
    let changelog = fs::read_to_string(Path::new(ROOT).join("CHANGELOG.md")).unwrap();
    let first = changelog.lines().find_map(|line| line.strip_prefix("## "));
    assert_eq!(first, Some(env!("CARGO_PKG_VERSION")));
}

#[test]
fn files_have_at_most_600_lines() {
    let long = long_files(&HOUSE.code);
    let title = format!(
        "{} files have more than {LONGEST} lines: split each",
        long.len()
    );
    assert!(long.is_empty(), "{}", told(&title, &long));
}

#[test]
#[expect(clippy::print_stdout, reason = "shown to who asks for it")]
fn half_of_the_functions_have_at_most_10_lines() {
    let lengths = lengths_of_functions(&HOUSE.code);
    let median = lengths[lengths.len() / 2];
    let longest = &lengths[lengths.len() * 9 / 10..];
    println!(
        "{} functions: half have at most {median} lines, nine of ten at most {}",
        lengths.len(),
        longest[0]
    );
    assert!(median <= MEDIAN, "half have more than {MEDIAN}: {median}");
}

#[test]
fn no_two_exported_types_share_a_name() {
    let shared = shared_names(&HOUSE.code);
    let title = format!(
        "{} names belong to two or more exported types: rename one",
        shared.len()
    );
    assert!(shared.is_empty(), "{}", told(&title, &shared));
}

#[test]
fn no_modules_use_each_other_in_a_circle() {
    let of_crate = |name| circles(&arrows(&HOUSE.code, name));
    let found: Vec<_> = HOUSE
        .crates
        .iter()
        .flat_map(|name| of_crate(name))
        .collect();
    let title = format!(
        "{} circles: move what the modules share into one below",
        found.len()
    );
    assert!(found.is_empty(), "{}", told(&title, &found));
}

#[test]
fn no_top_level_modules_of_the_server_use_each_other_in_a_circle() {
    let found = circles(&between_top_level(arrows(&HOUSE.code, "server")));
    let title = format!(
        "{} circles: each module may use only those below it",
        found.len()
    );
    assert!(found.is_empty(), "{}", told(&title, &found));
}

#[test]
fn links_in_the_pages_lead_to_files() {
    let dead = dead_links(&HOUSE.pages, |path| Path::new(ROOT).join(path).exists());
    assert!(
        dead.is_empty(),
        "{}",
        told(&format!("{} links lead to no file", dead.len()), &dead)
    );
}

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A file of the repository, by its path from the root.
#[derive(Debug)]
struct File {
    path: String,
    text: String,
    /// For a source, the text without comments and literals.
    code: String,
}

impl File {
    fn new(path: String, text: String) -> Self {
        let code = if path.ends_with(".rs") {
            masked(&text)
        } else {
            String::new()
        };
        Self { path, text, code }
    }
}

/// What the checks look at.
struct House {
    crates: Vec<String>,
    /// Rust, without tests and generated code.
    code: Vec<File>,
    /// Markdown.
    pages: Vec<File>,
}

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let manifest = fs::read_to_string(format!("{ROOT}/Cargo.toml"));
    let crates = members(&manifest.expect("the workspace has a Cargo.toml"));
    let (mut code, mut pages) = (Vec::new(), Vec::new());
    for name in &crates {
        collect(&format!("{name}/src"), "rs", &mut code);
    }
    for entry in fs::read_dir(ROOT)
        .expect("the root can be listed")
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            let text = fs::read_to_string(entry.path()).expect("a page can be read");
            pages.push(File::new(name, text));
        }
    }
    for folder in ["docs", "proto-docs"] {
        collect(folder, "md", &mut pages);
    }
    House {
        crates,
        code: without_tests(code),
        pages,
    }
});

/// The members of the workspace, of the text of its `Cargo.toml`.
fn members(manifest: &str) -> Vec<String> {
    let (_, rest) = manifest.split_once("members = [").unwrap_or_default();
    let (list, _) = rest.split_once(']').unwrap_or_default();
    let names = list
        .split(',')
        .map(|name| name.trim().trim_matches('"').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Reads the files below a folder that have this ending.
fn collect(folder: &str, ending: &str, into: &mut Vec<File>) {
    let entries = fs::read_dir(format!("{ROOT}/{folder}"))
        .into_iter()
        .flatten();
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&path, ending, into);
        } else if entry
            .path()
            .extension()
            .is_some_and(|found| found == ending)
        {
            let text = fs::read_to_string(entry.path()).expect("a source can be read");
            into.push(File::new(path, text));
        }
    }
}

fn told(title: &str, offenders: &[String]) -> String {
    let more = offenders.len().saturating_sub(LISTED);
    let mut text = format!(
        "{title}\n{}",
        offenders[..offenders.len() - more].join("\n")
    );
    if more > 0 {
        text += &format!("\nand {more} more");
    }
    text
}

fn wide_lines(files: &[File]) -> Vec<String> {
    let mut wide = Vec::new();
    for file in files {
        for (line, number) in file.text.lines().zip(1..) {
            let columns = line.chars().count();
            if columns > WIDEST {
                wide.push(format!("{}:{number}: {columns} columns", file.path));
            }
        }
    }
    wide
}

fn long_files(files: &[File]) -> Vec<String> {
    let lengths = files.iter().map(|file| (file, file.text.lines().count()));
    let long = lengths.filter(|(_, lines)| *lines > LONGEST);
    long.map(|(file, lines)| format!("{}:{lines}: {lines} lines", file.path))
        .collect()
}

/// How many lines each function has, the shortest first.
fn lengths_of_functions(files: &[File]) -> Vec<usize> {
    let mut lengths = Vec::new();
    for file in files {
        let tokens = outside_of_tests(&tokens(&file.code)).0;
        for (at, token) in tokens.iter().enumerate() {
            let is_named = tokens.get(at + 1).is_some_and(|next| next.is_word());
            let end = end_of_item(&tokens, at);
            if token.text == "fn" && is_named && tokens[end - 1].text == "}" {
                lengths.push(tokens[end - 1].line - token.line + 1);
            }
        }
    }
    lengths.sort_unstable();
    lengths
}

/// Names that two or more exported types have, with the places of these.
fn shared_names(files: &[File]) -> Vec<String> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let tokens = outside_of_tests(&tokens(&file.code)).0;
        for (at, _) in tokens
            .iter()
            .enumerate()
            .filter(|(_, token)| token.text == "pub")
        {
            let mut rest = tokens[at + 1..]
                .iter()
                .skip_while(|token| token.text == "unsafe");
            let (Some(kind), Some(name)) = (rest.next(), rest.next()) else {
                continue;
            };
            // A name that a macro is given begins with `$`.
            if TYPES.contains(&kind.text) && name.is_word() {
                let place = format!("{}:{}", file.path, name.line);
                types.entry(name.text.to_owned()).or_default().push(place);
            }
        }
    }
    let shared = types.into_iter().filter(|(_, places)| places.len() > 1);
    shared
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect()
}

/// Links of Markdown to files that do not exist.
fn dead_links(pages: &[File], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut dead = Vec::new();
    for page in pages {
        let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, number) in page.text.lines().zip(1..) {
            let links = line
                .split("](")
                .skip(1)
                .filter_map(|rest| rest.split([')', '#']).next());
            for link in links.filter(|link| !link.is_empty() && !link.contains(':')) {
                if !exists(&joined(folder, link)) {
                    dead.push(format!("{}:{number}: {link}", page.path));
                }
            }
        }
    }
    dead
}

/// The path from the root to which a link of a page in this folder leads.
fn joined(folder: &str, link: &str) -> String {
    let mut parts: Vec<_> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
    {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

/// A sample.
fn file(path: &str, text: &str) -> File {
    File::new(path.to_owned(), text.to_owned())
}

#[test]
fn a_wide_line_is_found_by_its_columns_not_its_bytes() {
    let fits = "é".repeat(WIDEST);
    let files = [file("mesh/src/a.rs", &format!("{fits}\n{fits}x\n"))];
    assert_eq!(wide_lines(&files), ["mesh/src/a.rs:2: 101 columns"]);
}

#[test]
fn a_long_file_is_found() {
    let fits = "\n".repeat(LONGEST);
    let files = [
        file("mesh/src/a.rs", &fits),
        file("mesh/src/b.rs", &format!("{fits}x")),
    ];
    assert_eq!(long_files(&files), ["mesh/src/b.rs:601: 601 lines"]);
}

#[test]
fn functions_are_measured_without_declarations_and_pointers() {
    let text = "
        trait A { fn declared(&self) -> u8; }
        fn short(of: fn(u8) -> u8) -> [u8; 2] { [of(1); 2] }
        fn long()
        where
            Self: Sized,
        {
            let a = |b| { b };
            fn inner() {
            }
        }";
    assert_eq!(
        lengths_of_functions(&[file("mesh/src/a.rs", text)]),
        [1, 2, 8]
    );
}

#[test]
fn a_name_that_two_exported_types_have_is_found() {
    let of_wire = "
        /// pub struct Told;
        pub struct Told { pub end: u8 }
        pub enum Once {}
        pub(crate) struct Inner;";
    let of_mesh = "
        pub type Told = u8; pub unsafe trait Inner {}
        const TET: &str = \"pub struct Once\";
        macro_rules! made { ($name:ident) => { pub struct $name; } }
        #[cfg(test)]
        mod tests { pub struct Once; }";
    let files = [
        file("wire/src/a.rs", of_wire),
        file("mesh/src/b.rs", of_mesh),
    ];
    assert_eq!(
        shared_names(&files),
        ["Told: wire/src/a.rs:3, mesh/src/b.rs:2"]
    );
}

#[test]
fn a_link_that_leads_to_no_file_is_found() {
    let text = "[up](../scale.md#now) [web](https://a.example)\n[gone](../gone.md), [here](#here)";
    let dead = dead_links(&[file("docs/adr/1.md", text)], |path| {
        path == "docs/scale.md"
    });
    assert_eq!(dead, ["docs/adr/1.md:2: ../gone.md"]);
}
