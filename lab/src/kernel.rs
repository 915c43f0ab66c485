//! The kernel ground: machines of User-Mode Linux, in which the same tests run on the kernel's own
//! WireGuard.
//!
//! ```text
//!   end_to_end ══ linux ── init (PID 1, on the host's files) ── job ── the same test program
//!        ▲                                                       │
//!        └───────── machines/<name>/{output,code,console.log} ◀──┘
//! ```
//!
//! A machine is an ordinary process of an ordinary user, boots in half a second, and does one job.
//! `docs/kernel.md` tells how to work in it.

mod root;

use std::{
    borrow::Cow,
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    binaries::{Binaries, repository, scratch},
    coordinator,
    process::quoted,
    wait::wait_for,
};

pub use root::Debian;

/// Set, it says to the tests that they are in a machine of their own, and may unload its modules.
pub const OWN_MACHINE: &str = "WATTLE_LAB_OWN_MACHINE";

/// Of each machine. What it does not touch costs nothing.
const MEMORY: &str = "2G";
/// The kernel would make one of these unasked, which no test expects.
const NO_INTERFACES: &str = "dummy.numdummies=0";
/// Where a machine finds what is lent to it: the programs, and the folders of the machines.
const INSIDE: &str = "/opt/wattle";
/// By how much deadlines are longer there: a system call takes 18 µs, a process 10 ms to start, and
/// a machine has one processor.
const PATIENCE: f64 = 3.0;
/// Passed on to the job, if they are set.
const PASSED: [&str; 3] = ["RUST_LOG", "RUST_BACKTRACE", "WATTLE_LAB_UNPRIVILEGED"];

/// Whether this program runs in a machine.
pub fn is_inside() -> bool {
    env::var_os(OWN_MACHINE).is_some()
}

/// Why there can be no machines here, if there can be none.
pub fn missing() -> Option<String> {
    (env::consts::ARCH != "x86_64").then(|| {
        format!(
            "User-Mode Linux is for x86-64, and this is {}",
            env::consts::ARCH
        )
    })
}

/// What machines are made of: a kernel, and a folder that is theirs, too.
#[derive(Debug)]
pub struct Machines {
    kernel: PathBuf,
    folder: PathBuf,
    /// Who has it has the folder.
    _lock: File,
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    pub success: bool,
    pub output: String,
}

impl Machines {
    /// Builds what is missing, the kernel included, and gathers it in a folder: the two programs,
    /// and as `test-<name>` the test programs `tests`.
    pub fn prepare<'t>(tests: impl IntoIterator<Item = (&'t str, PathBuf)>) -> Result<Self> {
        Self::gather("kernel", tests)
    }

    /// As [`Machines::prepare`], in the build's folder of this name.
    fn gather<'t>(name: &str, tests: impl IntoIterator<Item = (&'t str, PathBuf)>) -> Result<Self> {
        let kernel = build_kernel()?;
        let folder = scratch(name)?;
        let lock = folder.with_extension("lock");
        fs::create_dir_all(lock.parent().unwrap_or(&lock))?;
        let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
        lock.try_lock().with_context(|| {
            format!("another run of the {name} ground is under way in this checkout")
        })?;
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        for folder in [folder.join("programs"), folder.join("machines")] {
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        }

        // Copies: whoever builds meanwhile does not change what runs.
        let copy = |from: &Path, to: PathBuf| {
            fs::copy(from, to)
                .map(drop)
                .with_context(|| format!("copying {}", from.display()))
        };
        let programs = folder.join("programs");
        for (name, path) in tests {
            copy(&path, programs.join(format!("test-{name}")))?;
        }
        let binaries = Binaries::find()?;
        for path in [binaries.server(), binaries.agent()] {
            let path = Path::new(path);
            copy(
                path,
                programs.join(path.file_name().context("a program without a name")?),
            )?;
        }
        copy(&repository().join("lab/kernel/init"), folder.join("init"))?;
        coordinator::make_cluster(&folder.join("postgres"))?;
        Ok(Self {
            kernel,
            folder,
            _lock: lock,
        })
    }

    /// The name of the kernel, by its version.
    pub fn kernel(&self) -> Cow<'_, str> {
        self.kernel
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
    }

    /// The folder of the machines, where their logs are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts the machine `name`, which does `job`, lines of a shell, and switches itself off.
    /// After `limit` it is ended.
    pub fn run(&self, name: &str, job: &str, limit: Duration) -> Result<Ended> {
        self.start(name, job, Console::Nobody)?.ended(limit)
    }

    /// A shell in a machine, at this terminal, with the programs in its path.
    pub fn shell(&self) -> Result<()> {
        self.start("shell", "exec bash -i", Console::Person)?.left()
    }

    fn start(&self, name: &str, job: &str, console: Console) -> Result<Machine> {
        let folder = self.folder.join("machines").join(name);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        fs::write(folder.join("job"), environment() + job + "\n")?;
        Machine::start(self.command(&folder, "init")?, folder, console)
    }

    /// The kernel as a command, whose first program is `init` of the shared folder; where its
    /// consoles lead is still to be said. It ends with this program, however that ends.
    fn command(&self, folder: &Path, init: &str) -> Result<Command> {
        let name = folder.file_name().context("a machine without a name")?;
        let [name, own, shared, kernel] = [Path::new(name), folder, &self.folder, &self.kernel]
            .map(|path| path.to_str().filter(|path| !path.contains(['"', ','])));
        let (Some(name), Some(own), Some(shared), Some(kernel)) = (name, own, shared, kernel)
        else {
            bail!(
                "{} cannot be told to a machine: its path has a quote or a comma, or is not UTF-8",
                folder.display()
            );
        };
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(self.kernel.join("linux"));
        command.args([
            &format!("mem={MEMORY}"),
            &format!("uml_dir={own}"),
            "con0=null,fd:2",
        ]);
        command.args([
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "quiet",
            NO_INTERFACES,
        ]);
        // The kernel takes the quotes away.
        command.args([
            format!("init=\"{shared}/{init}\""),
            format!("MACHINE={name}"),
            format!("MODULES=\"{kernel}/lib/modules\""),
        ]);
        Ok(command)
    }
}

/// Who has the second console.
enum Console {
    Nobody,
    Person,
}

/// A machine that runs, at the latest until this value goes.
struct Machine {
    linux: Child,
    folder: PathBuf,
}

impl Machine {
    /// `linux` is as [`Machines::command`] gives it.
    fn start(mut linux: Command, folder: PathBuf, console: Console) -> Result<Self> {
        match console {
            Console::Nobody => {
                linux
                    .arg("con=null")
                    .stdin(Stdio::null())
                    .stdout(Stdio::null());
            }
            Console::Person => {
                fs::write(folder.join("talk"), "")?;
                linux.args(["con1=fd:0,fd:1", "con=null"]);
            }
        }
        let linux = linux
            .stderr(File::create(folder.join("console.log"))?)
            .spawn()
            .context("starting User-Mode Linux")?;
        Ok(Self { linux, folder })
    }

    /// Waits until its job has switched it off.
    fn ended(mut self, limit: Duration) -> Result<Ended> {
        wait_for("the machine ends", limit, || {
            self.linux.try_wait()?.context("it runs")
        })
        .with_context(|| self.last_words())?;
        let code =
            fs::read_to_string(self.folder.join("code")).with_context(|| self.last_words())?;
        Ok(Ended {
            success: code.trim() == "0",
            output: self.output(),
        })
    }

    /// Waits until the person at its console has switched it off.
    fn left(mut self) -> Result<()> {
        let status = self.linux.wait()?;
        if status.success() {
            Ok(())
        } else {
            bail!("the machine ended with {status}; {}", self.last_words())
        }
    }

    fn output(&self) -> String {
        fs::read(self.folder.join("output"))
            .map(|text| String::from_utf8_lossy(&text).into_owned())
            .unwrap_or_default()
    }

    /// For who wonders why it did not end well.
    fn last_words(&self) -> String {
        let console = self.folder.join("console.log");
        let text = fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(30)..].join("\n");
        format!(
            "its job said:\n{}\n{} ends:\n{end}\n",
            self.output().trim(),
            console.display()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.linux.kill();
        let _ = self.linux.wait();
    }
}

/// The kernel's folder, as `scripts/kernel` builds it where it is missing.
fn build_kernel() -> Result<PathBuf> {
    made_by("scripts/kernel", &[]).context("the kernel ground is missing")
}

/// The folder that a script of the repository makes where it is missing, and says with its last
/// line.
fn made_by(script: &str, arguments: &[&str]) -> Result<PathBuf> {
    let output = Command::new(repository().join(script))
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output();
    let output = output.with_context(|| format!("starting {script}"))?;
    ensure!(output.status.success(), "{script} failed");
    let text = String::from_utf8(output.stdout)
        .with_context(|| format!("what {script} says is not UTF-8"))?;
    Ok(text
        .lines()
        .last()
        .with_context(|| format!("{script} says nothing"))?
        .into())
}

/// The first lines of every job.
fn environment() -> String {
    let programs = format!("{INSIDE}/programs");
    let own = format!(
        "export WATTLE_BIN_DIR={programs} PATH={programs}:{INSIDE}/postgres:$PATH {OWN_MACHINE}=1 \
         WATTLE_LAB_PATIENCE={PATIENCE}\n"
    );
    let passed = PASSED
        .into_iter()
        .filter_map(|name| Some((name, env::var(name).ok()?)));
    passed.fold(own, |lines, (name, value)| {
        format!("{lines}export {name}={}\n", quoted(&value))
    })
}
