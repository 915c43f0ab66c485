//! The second ground: a virtual machine with Debian's kernel, in which the same tests run on the kernel's own WireGuard.
//!
//! ```text
//!   wattle-lab kernel test ══ qemu ── init (initramfs) ── guest (PID 1, on the host's files) ── job ── the test programs
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
    env,
    fs::{self, File},
    io::{Write, stdout},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    binaries::{self, Binaries, scratch},
    process,
};
use debian::Debian;
use machine::{Machine, PORT, Talk};
use tally::{BEGINS, ENDS, Heard, Tally, Transcript};

/// Set, it says to the tests that they have a machine to themselves, and may unload its modules.
pub const OWN_MACHINE: &str = "WATTLE_LAB_OWN_MACHINE";
/// By how much the deadlines are longer in an emulated machine.
const PATIENCE: f64 = 20.0;
/// How long the machine may say nothing, where it gives a sign of life every ten seconds.
const SILENCE: Duration = Duration::from_secs(120);

/// Where Debian's packages of Postgres are, by their versions.
const POSTGRES: &str = "/usr/lib/postgresql";
/// Told to a machine that waits for a test, it says that there is none left.
const DONE: &str = "done";
/// More machines than this take more memory than they save time.
const MOST_MACHINES: usize = 4;

/// A test program that runs in a machine.
struct Suite {
    /// Of cargo's target.
    name: &'static str,
    /// The word that its tests have in their names, if not all are for here.
    only: Option<&'static str>,
}

/// The end-to-end tests, and the agent's own of what it does to a kernel.
const SUITES: [Suite; 2] = [Suite { name: "end_to_end", only: None }, Suite { name: "wattle-agent", only: Some("kernel::") }];

/// One test of a suite.
#[derive(Debug)]
struct Test {
    suite: &'static str,
    name: String,
}

/// Runs the tests whose names contain `filter`; without one, all. `limit` ends the machines, whatever they do.
///
/// Each machine has one processor, and there are as many as the host has: two that emulate one each get more done than one with two, and
/// tests that unload modules are alone.
pub fn test(filter: Option<&str>, limit: Duration) -> Result<()> {
    let Prepared { debian, folder, .. } = prepare()?;
    let tests = list(&folder, filter)?;
    ensure!(!tests.is_empty(), "no test has {:?} in its name", filter.unwrap_or_default());
    let machines = thread::available_parallelism().map_or(1, usize::from).min(MOST_MACHINES).min(tests.len());
    say(&format!("ground: kernel module, {debian}; {} tests on {machines} machines", tests.len()))?;

    let start = Instant::now();
    let (queue, tally) = (Mutex::new(tests.iter()), Mutex::new(Tally::new(tests.len())));
    let ends: Vec<Result<()>> = thread::scope(|scope| {
        let (debian, folder, queue, tally) = (&debian, &folder, &queue, &tally);
        let run = |number| {
            let next = || lock(queue).next();
            scope.spawn(move || run_tests(debian, folder, &format!("{number}"), next, limit, tally))
        };
        let running: Vec<_> = (1..=machines).map(run).collect();
        running.into_iter().map(|machine| machine.join().unwrap_or_else(|_| bail!("the lab itself failed"))).collect()
    });
    let tally = lock(&tally);
    say(&format!("\n{tally}; {:.0} s; logs: {}", start.elapsed().as_secs_f64(), folder.join("lab").display()))?;
    ends.into_iter().collect::<Result<()>>()?;
    tally.judge()
}

/// Runs tests on a machine of their own, one after the other, as long as `next` gives one.
fn run_tests<'t>(
    debian: &Debian,
    folder: &Path,
    name: &str,
    mut next: impl FnMut() -> Option<&'t Test>,
    limit: Duration,
    tally: &Mutex<Tally>,
) -> Result<()> {
    // Each, whatever becomes of the one before.
    let job = format!(
        "while read -r suite name && [ $suite != {DONE} ]; do\n\
         echo \"{BEGINS}$name\"\n\
         ./programs/test-$suite --exact \"$name\" --test-threads=1 --color=never </dev/null\n\
         echo \"{ENDS}$?\"\n\
         done\n"
    );
    let start = Instant::now();
    let mut machine = Machine::start(debian, folder, name, &(environment(folder) + &job), Talk::Listen)?;
    let mut input = machine.input()?;
    let mut give_next = move || match next() {
        Some(Test { suite, name }) => writeln!(input, "{suite} {name}"),
        None => writeln!(input, "{DONE}"),
    };
    let mut transcript = Transcript::default();
    let ended = machine.listen(SILENCE, limit, |line| match line {
        machine::UP => {
            give_next()?;
            say(&format!("machine {name}: up after {:.1} s", start.elapsed().as_secs_f64()))
        }
        line => match transcript.hear(line, Instant::now()) {
            Heard::Nothing => Ok(()),
            Heard::Stray(line) => say(&format!("machine {name}: {line}")),
            Heard::Ended(ended) => {
                give_next()?;
                let line = lock(tally).count(ended);
                say(&line)
            }
        },
    });
    let running = || transcript.last_words().unwrap_or_else(|| "no test was running".to_owned());
    ended.map(drop).with_context(|| format!("machine {name}; {}", running()))
}

/// What a thread that failed left is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a command of a shell in the machine, which has to succeed.
pub fn run(command: &str, limit: Duration) -> Result<()> {
    let Prepared { debian, folder, .. } = prepare()?;
    let job = format!("{}exec </dev/null\n{command}\n", environment(&folder));
    let mut machine = Machine::start(&debian, &folder, "1", &job, Talk::Listen)?;
    match machine.listen(SILENCE, limit, |line| if line == machine::UP { Ok(()) } else { say(line) })? {
        0 => Ok(()),
        code => bail!("the command ended with {code}"),
    }
}

/// A shell in the machine, with the programs in its path.
pub fn shell() -> Result<()> {
    let Prepared { debian, folder, .. } = prepare()?;
    let job = format!("stty -F {PORT} sane\nexec setsid --ctty bash -i <{PORT} >{PORT} 2>&1\n");
    say(&format!("machine: {debian}; `exit` switches it off, Ctrl-A X pulls the plug"))?;
    Machine::start(&debian, &folder, "1", &(environment(&folder) + &job), Talk::Person)?.wait()
}

/// What machines are made of.
struct Prepared {
    debian: Debian,
    folder: PathBuf,
    /// Who has it has the folder.
    _lock: File,
}

/// Builds everything, and gathers it in a folder that is the machine's too.
fn prepare() -> Result<Prepared> {
    let debian = Debian::find()?;
    let folder = scratch("kernel")?;
    let lock = folder.with_extension("lock");
    fs::create_dir_all(lock.parent().unwrap_or(&lock))?;
    let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    if lock.try_lock().is_err() {
        say("waiting until another run has ended")?;
        lock.lock()?;
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let programs = folder.join("programs");
    // The second one is for logs: machines do not see at once what others make.
    for folder in [&programs, &folder.join("lab")] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }

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
    let postgres = folder.join("postgres");
    fs::create_dir(&postgres)?;
    initramfs::write_script(&postgres.join("initdb"), include_str!("kernel/initdb"))?;
    symlink(find_postgres()?, postgres.join("postgres"))?;
    initramfs::build(&debian, &folder)?;
    Ok(Prepared { debian, folder, _lock: lock })
}

/// The server's program of the newest Postgres that Debian installed.
fn find_postgres() -> Result<PathBuf> {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = fs::read_dir(POSTGRES).with_context(|| format!("reading {POSTGRES}: install the package postgresql"))?;
    let newest = installed.filter_map(|entry| Some(entry.ok()?.path())).max_by_key(version);
    Ok(newest.with_context(|| format!("{POSTGRES} is empty"))?.join("bin/postgres"))
}

/// The test programs of the suites, by their names.
fn build_tests() -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = binaries::cargo("test")?.context("the tests are built by cargo: use `cargo run --bin wattle-lab -- kernel test`")?;
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

/// The tests whose names contain `filter`, in the order of their programs.
fn list(folder: &Path, filter: Option<&str>) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for Suite { name: suite, only } in SUITES {
        let mut program = Command::new(folder.join(format!("programs/test-{suite}")));
        program.arg("--list").env(OWN_MACHINE, "1");
        let output = process::run(program, None)?;
        let names = output.lines().filter_map(|line| line.strip_suffix(": test"));
        let wanted = |name: &&str| only.is_none_or(|word| name.contains(word)) && filter.is_none_or(|word| name.contains(word));
        tests.extend(names.filter(wanted).map(|name| Test { suite, name: name.to_owned() }));
    }
    Ok(tests)
}

/// The first lines of every job.
fn environment(folder: &Path) -> String {
    let programs = folder.join("programs").display().to_string();
    let path = quoted(&programs);
    let own = format!("export WATTLE_BIN_DIR={path} PATH=/opt/lab:{path}:$PATH {OWN_MACHINE}=1 WATTLE_LAB_PATIENCE={PATIENCE}\n");
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
