//! A file of settings, in TOML. Which keys there are is said by the type that is read.

use std::{fs, io, path::Path};

use anyhow::{Context, anyhow, ensure};
use serde::de::DeserializeOwned;

/// Reads a file of settings; `None` when there is no such file.
///
/// # Errors
///
/// When it cannot be read, or when something in it is no setting: names the line, and what can stand
/// there. The line itself is not repeated: it may hold a password.
pub fn read<S: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<S>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    toml::from_str(&text).map(Some).map_err(|error| {
        let end = error.span().map_or(0, |span| span.start);
        let before = text.get(..end).unwrap_or(&text);
        let line = before.matches('\n').count() + 1;
        let words = error.message().replace('\n', ", ");
        anyhow!("{}, line {line}: {words}", path.display())
    })
}

/// What a check says of a file that [`read`] took.
///
/// # Errors
///
/// When there is none.
pub fn valid(path: &Path) -> anyhow::Result<String> {
    let file = path.display();
    ensure!(path.exists(), "there is no {file}");
    Ok(format!("{file} is valid"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        port: Option<u16>,
        database_url: Option<String>,
        guard: Guard,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Guard {
        most_peers: usize,
    }

    #[test]
    fn what_is_no_setting_is_told_with_its_line_and_without_its_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        assert_eq!(read::<Settings>(&path).unwrap(), None);
        fs::write(&path, "# all as it is\n").unwrap();
        assert_eq!(read(&path).unwrap(), Some(Settings::default()));
        for (text, line, words) in [
            (
                "port = 1\nprot = 2\n",
                2,
                "unknown field `prot`, expected one of `port`",
            ),
            ("port = 1\nport = 2\n", 2, "duplicate key"),
            ("# a\n\nport = 65536\n", 3, "expected u16"),
            ("port = \"80\"", 1, "expected u16"),
            (
                "\n[guard]\n\nmost = 3\n",
                4,
                "unknown field `most`, expected `most_peers`",
            ),
            ("[gard]\n", 1, "unknown field `gard`"),
            (
                "port = 1\ndatabase_url = postgres://wattle:hunter2@db\n",
                2,
                "",
            ),
            (
                "port = 1\ndatabase_url = \"postgres://wattle:hunter2@db\n",
                2,
                "",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = format!("{:#}", read::<Settings>(&path).unwrap_err());
            let begin = format!("{}, line {line}: ", path.display());
            assert!(error.starts_with(&begin), "{text}: {error}");
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let folder = read::<Settings>(dir.path()).unwrap_err();
        assert!(folder.to_string().starts_with("cannot read "), "{folder}");
    }
}
