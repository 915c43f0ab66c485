//! `docs/cases.md` names tests that there are.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn each_case_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut code = String::new();
    for part in ["agent", "client", "fleet", "lab", "mesh", "server", "wire"] {
        for folder in ["src", "tests"] {
            read_all(&root.join(part).join(folder), &mut code);
        }
    }
    let page = fs::read_to_string(root.join("docs/cases.md")).unwrap();
    let mut ids = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let [_, id, _, tests, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{row}")
        };
        assert!(ids.insert(id), "{id} stands there twice");
        let tests: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{id} has no test");
        for test in tests {
            assert!(
                test.split('_').any(|part| part == id.to_lowercase()),
                "{test} does not carry the id {id}"
            );
            assert!(
                code.contains(&format!("fn {test}(")),
                "{id}: there is no test {test}; if it has another name now, docs/cases.md should \
                 say so"
            );
        }
    }
    assert!(ids.len() > 50, "{ids:?}");
}

fn read_all(folder: &Path, code: &mut String) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_all(&path, code);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            code.push_str(&fs::read_to_string(&path).expect("a source can be read"));
        }
    }
}
