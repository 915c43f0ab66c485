//! Which modules of a crate use which, and whether they do so in a circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    File, file,
    rust::{Token, end_of_brackets, outside_of_tests, tokens},
};

/// One module uses another.
#[derive(Debug)]
pub(crate) struct Arrow {
    from: String,
    to: String,
    place: String,
}

/// Which modules of a crate use which, each with the first place where it does.
///
/// A module may use what is inside it, and what is inside may use the module.
pub(crate) fn arrows(files: &[File], name: &str) -> Vec<Arrow> {
    let in_crate = files
        .iter()
        .filter_map(|file| Some((module_of(&file.path, name)?, file)));
    let mut files: Vec<_> = in_crate.collect();
    // Beside a library, the program is a crate of its own.
    if files
        .iter()
        .any(|(_, file)| file.path.ends_with("src/lib.rs"))
    {
        files.retain(|(_, file)| !file.path.ends_with("src/main.rs"));
    }
    let modules: BTreeSet<_> = files.iter().map(|(module, _)| module.clone()).collect();
    let mut arrows = BTreeMap::new();
    for (module, file) in &files {
        for (path, line) in paths(&outside_of_tests(&tokens(&file.code)).0, module) {
            let mut prefixes = (0..=path.len()).rev().map(|length| &path[..length]);
            let Some(used) = prefixes.find_map(|prefix| modules.get(prefix)) else {
                continue;
            };
            if !used.starts_with(module) && !module.starts_with(used) {
                let arrow = (module.join("::"), used.join("::"));
                arrows
                    .entry(arrow)
                    .or_insert_with(|| format!("{}:{line}", file.path));
            }
        }
    }
    arrows
        .into_iter()
        .map(|((from, to), place)| Arrow { from, to, place })
        .collect()
}

/// The same between top-level modules, each with all that is inside it.
pub(crate) fn between_top_level(arrows: Vec<Arrow>) -> Vec<Arrow> {
    let top = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
    let mut between: BTreeMap<_, String> = BTreeMap::new();
    for Arrow { from, to, place } in arrows {
        between.entry((top(&from), top(&to))).or_insert(place);
    }
    let between = between.into_iter().filter(|((from, to), _)| from != to);
    between
        .map(|((from, to), place)| Arrow { from, to, place })
        .collect()
}

/// Each set of modules that use each other in the end, with the shortest circle in it.
pub(crate) fn circles(arrows: &[Arrow]) -> Vec<String> {
    let mut left: BTreeSet<&str> = arrows.iter().map(|arrow| arrow.from.as_str()).collect();
    let mut told = Vec::new();
    while let Some(module) = left.pop_first() {
        if way_back(arrows, module).is_none() {
            continue;
        }
        let reached = reached_from(arrows, module).into_iter();
        let circle: BTreeSet<_> = reached
            .filter(|other| reached_from(arrows, other).contains(module))
            .collect();
        left.retain(|other| !circle.contains(other));
        let ways = circle.iter().filter_map(|module| way_back(arrows, module));
        let shortest = ways.min_by_key(Vec::len).unwrap_or_default();
        let step = |Arrow { from, to, place }: &Arrow| format!("\n  {place}: {from} uses {to}");
        let steps: String = shortest.into_iter().map(step).collect();
        let names: Vec<_> = circle.iter().copied().collect();
        let (count, names) = (names.len(), names.join(", "));
        told.push(format!(
            "{count} modules: {names}; the shortest circle:{steps}"
        ));
    }
    told
}

fn from<'a>(arrows: &'a [Arrow], module: &'a str) -> impl Iterator<Item = &'a Arrow> {
    arrows.iter().filter(move |arrow| arrow.from == module)
}

fn reached_from<'a>(arrows: &'a [Arrow], module: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![module];
    while let Some(module) = next.pop() {
        for arrow in from(arrows, module) {
            if reached.insert(arrow.to.as_str()) {
                next.push(&arrow.to);
            }
        }
    }
    reached
}

/// The shortest way from a module back to itself.
fn way_back<'a>(arrows: &'a [Arrow], module: &'a str) -> Option<Vec<&'a Arrow>> {
    let mut seen = BTreeSet::new();
    let mut ways: VecDeque<_> = from(arrows, module).map(|arrow| vec![arrow]).collect();
    while let Some(way) = ways.pop_front() {
        let at = &way.last()?.to;
        if at == module {
            return Some(way);
        }
        if seen.insert(at) {
            ways.extend(from(arrows, at).map(|arrow| [&way[..], &[arrow]].concat()));
        }
    }
    None
}

/// The module that a file of a crate is.
fn module_of(path: &str, name: &str) -> Option<Vec<String>> {
    let inside = path
        .strip_prefix(name)?
        .strip_prefix("/src/")?
        .strip_suffix(".rs")?;
    let mut parts: Vec<_> = inside.split('/').map(str::to_owned).collect();
    if parts
        .last()
        .is_some_and(|last| ["lib", "main", "mod"].contains(&last.as_str()))
    {
        parts.pop();
    }
    Some(parts)
}

/// Paths from the root of the crate on, with their lines.
type Paths = Vec<(Vec<String>, usize)>;

/// The paths that begin with `crate`, `self` or `super`, made absolute, with their lines.
fn paths(tokens: &[Token<'_>], module: &[String]) -> Paths {
    let mut found = Vec::new();
    // The inline modules that are open here, with the depth of their braces.
    let (mut inside, mut depth) = (Vec::<(String, usize)>::new(), 0_usize);
    for (at, token) in tokens.iter().enumerate() {
        let is = |at: usize, text: &str| tokens.get(at).is_some_and(|token| token.text == text);
        match token.text {
            "{" => {
                depth += 1;
                if at >= 2 && is(at - 2, "mod") {
                    inside.push((tokens[at - 1].text.to_owned(), depth));
                }
            }
            "}" => {
                inside.pop_if(|(_, opened)| *opened == depth);
                depth = depth.saturating_sub(1);
            }
            "crate" | "self" | "super" if is(at + 1, "::") && !(at > 0 && is(at - 1, "::")) => {
                let inside = inside.iter().map(|(name, _)| name);
                let mut base: Vec<_> = module.iter().chain(inside).cloned().collect();
                let mut at = at;
                match token.text {
                    "crate" => base.clear(),
                    "self" => {}
                    _ => {
                        base.pop();
                        while is(at + 1, "::") && is(at + 2, "super") {
                            base.pop();
                            at += 2;
                        }
                    }
                }
                follow(tokens, at + 2, &base, &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Reads a path, or the tree of a `use`, from after a `::` on. Returns where it ends.
fn follow(tokens: &[Token<'_>], mut at: usize, base: &[String], found: &mut Paths) -> usize {
    let Some(token) = tokens.get(at) else {
        return at;
    };
    if token.text == "{" {
        let end = end_of_brackets(tokens, at);
        at += 1;
        while at + 1 < end {
            at = follow(tokens, at, base, found).max(at + 1);
            while at + 1 < end && tokens[at].text != "," {
                at += 1;
            }
            at += 1;
        }
        return end;
    }
    let mut path = base.to_vec();
    if token.is_word() && token.text != "self" {
        path.push(token.text.to_owned());
    }
    if tokens.get(at + 1).is_some_and(|next| next.text == "::") {
        return follow(tokens, at + 2, &path, found);
    }
    found.push((path, token.line));
    at + 1
}

#[test]
fn a_circle_of_modules_is_found_with_the_shortest_in_it() {
    let of_c = "
        use super::b::B;
        // use crate::a::A;
        #[cfg(test)]
        mod tests { use crate::a::A; }";
    let files = [
        file("mesh/src/lib.rs", "use crate::a::A;"),
        file(
            "mesh/src/a.rs",
            "use crate::{b::{self, B}, lib};\nuse self::part::Part;",
        ),
        file(
            "mesh/src/a/part.rs",
            "use super::A;\nuse super::super::c::C;",
        ),
        file("mesh/src/b.rs", "fn b() { crate::c::c(); }"),
        file("mesh/src/c.rs", of_c),
        file("wire/src/c.rs", "use crate::a::A;"),
    ];
    let found = arrows(&files, "mesh");
    let ends: Vec<_> = found
        .iter()
        .map(|arrow| (&*arrow.from, &*arrow.to))
        .collect();
    assert_eq!(ends, [("a", "b"), ("a::part", "c"), ("b", "c"), ("c", "b")]);
    let way = "\n  mesh/src/b.rs:1: b uses c\n  mesh/src/c.rs:2: c uses b";
    assert_eq!(
        circles(&found),
        [format!("2 modules: b, c; the shortest circle:{way}")]
    );
}

#[test]
fn a_circle_of_top_level_modules_is_found_where_no_two_files_make_one() {
    let files = [
        file("server/src/lib.rs", ""),
        file("server/src/http/a.rs", "use crate::state::b::B;"),
        file("server/src/http/c.rs", ""),
        file(
            "server/src/state/b.rs",
            "mod inner { use super::super::d::D; }",
        ),
        file("server/src/state/d.rs", "use crate::http::c::C;"),
        file("server/src/main.rs", "use crate::http;"),
    ];
    let found = arrows(&files, "server");
    assert_eq!(circles(&found), [""; 0]);
    let steps = [
        "2 modules: http, state; the shortest circle:",
        "  server/src/http/a.rs:1: http uses state",
        "  server/src/state/d.rs:1: state uses http",
    ];
    assert_eq!(circles(&between_top_level(found)), [steps.join("\n")]);
}
