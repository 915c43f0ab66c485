//! Where the two real programs are.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// A directory that holds the two programs; absent, they are taken from the build that this program
/// is from.
const DIRECTORY: &str = "WATTLE_BIN_DIR";

/// Paths of the two programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    server: String,
    agent: String,
}

impl Binaries {
    pub fn find() -> Result<Self> {
        let directory = directory()?;
        let find = |name: &str| {
            let path = directory.join(name);
            if !path.is_file() {
                bail!(
                    "{} is not there: run `cargo build --workspace`, or set {DIRECTORY}",
                    path.display()
                );
            }
            path.into_os_string()
                .into_string()
                .ok()
                .context("the path of the programs is not UTF-8")
        };
        Ok(Self {
            server: find("wattle-server")?,
            agent: find("wattle-agent")?,
        })
    }

    pub fn server(&self) -> &str {
        &self.server
    }

    pub fn agent(&self) -> &str {
        &self.agent
    }
}

/// Builds the programs as this test program was built, so that the tests never run yesterday's.
///
/// Gives the workspace's test programs by their names; none where it is not cargo who runs this:
/// there, all programs have to be at hand. Cargo builds only the programs of the package under test
/// by itself. With `--tests`, dependencies have the features that tests have, so that none is built
/// twice.
pub fn build() -> Result<BTreeMap<String, PathBuf>> {
    let mut tests = BTreeMap::new();
    let (None, Some(cargo)) = (env::var_os(DIRECTORY), env::var_os("CARGO")) else {
        return Ok(tests);
    };
    let directory = directory()?;
    let target = directory
        .parent()
        .context("the build directory has no parent")?;
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--workspace",
        "--bins",
        "--tests",
        "--message-format",
        "json-render-diagnostics",
    ]);
    command
        .arg("--target-dir")
        .arg(target)
        .current_dir(repository());
    if directory.ends_with("release") {
        command.arg("--release");
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(
        output.status.success(),
        "building the programs: {}",
        output.status
    );
    for message in String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
    {
        if let (Some(name), Some(path), true) = (
            message["target"]["name"].as_str(),
            message["executable"].as_str(),
            message["profile"]["test"] == true,
        ) {
            tests.insert(name.to_owned(), path.into());
        }
    }
    Ok(tests)
}

/// A folder for logs and state below the build's: `target/lab/<name>`.
pub fn scratch(name: &str) -> Result<PathBuf> {
    let exe = env::current_exe()?;
    let build = exe.parent().and_then(|dir| {
        if dir.ends_with("deps") {
            dir.parent()
        } else {
            Some(dir)
        }
    });
    Ok(build
        .and_then(Path::parent)
        .context("this program is in no build directory")?
        .join("lab")
        .join(name))
}

/// The folder of this program, or, for a test program, the one above.
fn directory() -> Result<PathBuf> {
    if let Some(directory) = env::var_os(DIRECTORY) {
        return PathBuf::from(directory)
            .canonicalize()
            .with_context(|| format!("the folder in {DIRECTORY}"));
    }
    let exe = env::current_exe()?;
    let directory = exe.parent().context("this program is in no directory")?;
    let directory = if directory.ends_with("deps") {
        directory.parent()
    } else {
        Some(directory)
    };
    Ok(directory
        .context("this program is in no build directory")?
        .to_owned())
}

/// The checkout.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
