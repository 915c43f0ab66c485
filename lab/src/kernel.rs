//! The second ground: a virtual machine with Debian's kernel, in which the same tests run on the kernel's own WireGuard.
//!
//! ```text
//!   wattle-lab kernel test ── qemu ── init (initramfs) ── guest (PID 1, on the host's files) ── job ── the test programs
//!        ▲                                                                                                   │
//!        └─────────── the second serial port: what they print, and at last how the job ended ◀───────────────┘
//! ```
//!
//! `docs/kernel.md` tells how to work in it.

mod debian;
mod initramfs;
mod machine;
mod tally;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{Write, stdout},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    binaries::{self, Binaries, scratch},
    process,
};
use debian::Debian;
use machine::{Machine, Talk};
use tally::Tally;

/// Set, it says to the tests that they have a machine to themselves, and may unload its modules.
pub const OWN_MACHINE: &str = "WATTLE_LAB_OWN_MACHINE";
/// By how much the deadlines are longer in an emulated machine.
const PATIENCE: f64 = 20.0;
/// How long the machine may say nothing, where it gives a sign of life every ten seconds.
const SILENCE: Duration = Duration::from_secs(120);

/// A test program that runs in the machine.
struct Suite {
    /// Of cargo's target.
    name: &'static str,
    /// The word that its tests have in their names, if not all are for here.
    only: Option<&'static str>,
}

/// The end-to-end tests, and the agent's own of what it does to a kernel.
const SUITES: [Suite; 2] = [Suite { name: "end_to_end", only: None }, Suite { name: "wattle-agent", only: Some("kernel::") }];

/// Runs the tests whose names contain `filter`; without one, all. `limit` ends the machine, whatever it does.
pub fn test(filter: Option<&str>, limit: Duration) -> Result<()> {
    let (debian, folder) = prepare()?;
    // Each, whatever becomes of the one before.
    let runs: Vec<String> = SUITES
        .iter()
        .map(|suite| {
            let word = filter.or(suite.only).unwrap_or_default();
            format!("./programs/test-{} --test-threads=1 --color=never {} || status=1\n", suite.name, quoted(word))
        })
        .collect();
    fs::write(folder.join("job"), format!("{}status=0\n{}exit $status\n", environment(&folder), runs.concat()))?;

    let start = Instant::now();
    let mut machine = Machine::start(&debian, &folder, Talk::Listen)?;
    let mut tally = Tally::default();
    let ended = machine.listen(SILENCE, limit, |line| match line {
        machine::UP => say(&format!("machine: {debian}, up after {:.1} s", start.elapsed().as_secs_f64())),
        line if tally.counts(line) => Ok(()),
        line => say(line),
    });
    let seconds = start.elapsed().as_secs_f64();
    say(&format!("machine: off after {seconds:.1} s; logs of the tests: {}", folder.join("lab").display()))?;
    say(&tally.to_string())?;
    tally.judge(ended?)
}

/// Runs a command of a shell in the machine, which has to succeed.
pub fn run(command: &str, limit: Duration) -> Result<()> {
    let (debian, folder) = prepare()?;
    fs::write(folder.join("job"), format!("{}{command}\n", environment(&folder)))?;
    let mut machine = Machine::start(&debian, &folder, Talk::Listen)?;
    match machine.listen(SILENCE, limit, |line| if line == machine::UP { Ok(()) } else { say(line) })? {
        0 => Ok(()),
        code => bail!("the command ended with {code}"),
    }
}

/// A shell in the machine, with the programs in its path.
pub fn shell() -> Result<()> {
    let (debian, folder) = prepare()?;
    let port = machine::PORT;
    let job = format!("stty -F {port} sane\nexec setsid --ctty bash -i <{port} >{port} 2>&1\n");
    fs::write(folder.join("job"), environment(&folder) + &job)?;
    say(&format!("machine: {debian}; `exit` switches it off, Ctrl-A X pulls the plug"))?;
    Machine::start(&debian, &folder, Talk::Person)?.wait()
}

/// Builds everything, and gathers it in a folder that is the machine's too.
fn prepare() -> Result<(Debian, PathBuf)> {
    let debian = Debian::find()?;
    let folder = scratch("kernel")?;
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let programs = folder.join("programs");
    fs::create_dir_all(&programs).with_context(|| format!("making {}", programs.display()))?;

    // Copies: whoever builds meanwhile does not change what runs.
    for (name, path) in build_tests()? {
        fs::copy(&path, programs.join(format!("test-{name}"))).with_context(|| format!("copying {}", path.display()))?;
    }
    binaries::build()?;
    let binaries = Binaries::find()?;
    for path in [binaries.server(), binaries.agent()] {
        let name = Path::new(path).file_name().context("a program without a name")?;
        fs::copy(path, programs.join(name)).with_context(|| format!("copying {path}"))?;
    }
    initramfs::build(&debian, &folder)?;
    Ok((debian, folder))
}

/// The test programs of the suites, by their names.
fn build_tests() -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo =
        binaries::cargo("test")?.context("the tests are built by cargo: use `cargo run --package wattle-lab -- kernel test`")?;
    cargo.args(["--no-run", "--message-format", "json"]);
    let messages = process::run(cargo, None)?;
    let mut found = BTreeMap::new();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let name = message["target"]["name"].as_str().unwrap_or_default();
        if let Some(path) = message["executable"].as_str()
            && message["profile"]["test"] == true
            && SUITES.iter().any(|suite| suite.name == name)
        {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    if found.len() != SUITES.len() {
        bail!("cargo built {found:?} only");
    }
    Ok(found)
}

/// The first lines of every job.
fn environment(folder: &Path) -> String {
    let programs = folder.join("programs").display().to_string();
    let path = quoted(&programs);
    let own = format!("export WATTLE_BIN_DIR={path} PATH={path}:$PATH {OWN_MACHINE}=1 WATTLE_LAB_PATIENCE={PATIENCE}\n");
    let passed =
        ["RUST_LOG", "RUST_BACKTRACE", "WATTLE_LAB_UNPRIVILEGED"].into_iter().filter_map(|name| Some((name, env::var(name).ok()?)));
    passed.fold(own, |lines, (name, value)| format!("{lines}export {name}={}\n", quoted(&value)))
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush().map_err(Into::into)
}
