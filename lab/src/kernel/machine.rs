//! The virtual machine: `qemu` that emulates, and `virtiofsd` that lends it the host's files.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;

use super::debian::{Debian, system_command};

/// The machine's second serial port, which is the host's side of the job.
pub(super) const PORT: &str = "/dev/ttyS1";
/// What is said there first.
pub(super) const UP: &str = "lab: up";
/// What is said there last, with a number.
const ENDED: &str = "lab: the job ended with ";
/// Where Debian has a program that is in no path; the first one is of the package virtiofsd, the second of qemu's own.
const VIRTIOFSD: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];
const MEMORY: &str = "4G";

/// Who has the second serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Talk {
    /// This program, through [`Machine::listen`].
    Listen,
    /// The person at this terminal.
    Person,
}

/// A machine that runs, at the latest until this value goes.
#[derive(Debug)]
pub(super) struct Machine {
    qemu: Child,
    shares: Vec<Child>,
    console: PathBuf,
}

impl Machine {
    /// Starts the machine `name`, which does `job`, lines of a shell. In the folder are `initramfs` and `guest`, and from now on, below the
    /// machine's name, what is its own: the job, its sockets and `console.log`.
    pub(super) fn start(debian: &Debian, folder: &Path, name: &str, job: &str, talk: Talk) -> Result<Self> {
        let path = folder.to_str().context("the path of the build is not UTF-8")?;
        ensure!(
            !path.contains(|c: char| c.is_whitespace() || c == ','),
            "a path with spaces or commas cannot be told to the machine: {path}"
        );
        ensure!(geteuid().is_root(), "virtiofsd, which lends the machine the host's files, has to run as root: run this as root");
        let own = folder.join(name);
        fs::create_dir_all(&own).with_context(|| format!("making {}", own.display()))?;
        fs::write(own.join("job"), job)?;
        let shares = vec![share(&own, "host", Path::new("/"))?, share(&own, "folder", folder)?];

        let mut qemu = bound("qemu-system-x86_64");
        // No KVM: where it is at all, it does not work in each nested machine, and nothing here needs the speed.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35", "-m", MEMORY]);
        qemu.args(["-smp", "1"]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"]);
        qemu.args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on"), "-numa", "node,memdev=memory"]);
        for tag in ["host", "folder"] {
            qemu.args(["-chardev", &format!("socket,id={tag},path={tag}.sock")]);
            qemu.args(["-device", &format!("vhost-user-fs-pci,chardev={tag},tag={tag}")]);
        }
        let person = match talk {
            Talk::Listen => "stdio",
            Talk::Person => "mon:stdio",
        };
        qemu.args(["-serial", "file:console.log", "-serial", person]);
        qemu.arg("-kernel").arg(&debian.image).args(["-initrd", "../initramfs"]);
        qemu.args(["-append", &format!("console=ttyS0 panic=-1 oops=panic mitigations=off lab.folder={path} lab.machine={name}")]);
        qemu.current_dir(&own);
        if talk == Talk::Listen {
            qemu.stdin(Stdio::piped()).stdout(Stdio::piped());
        }
        let qemu = qemu.spawn().context("starting qemu-system-x86_64")?;
        Ok(Self { qemu, shares, console: own.join("console.log") })
    }

    /// What is written here comes to the job on its serial port.
    pub(super) fn input(&mut self) -> Result<ChildStdin> {
        self.qemu.stdin.take().context("nobody can talk to this machine")
    }

    /// Gives each line that comes out of the machine to `heard`, and at the end the job's code.
    pub(super) fn listen(&mut self, silence: Duration, limit: Duration, mut heard: impl FnMut(&str) -> Result<()>) -> Result<u8> {
        let deadline = Instant::now() + limit;
        let output = self.qemu.stdout.take().context("nobody listens to this machine")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (mut heard_at, mut console) = (Instant::now(), 0);
        loop {
            match lines.recv_timeout(Duration::from_secs(1)) {
                Ok(line) => {
                    heard_at = Instant::now();
                    let line = String::from_utf8_lossy(&line);
                    match line.trim_end().strip_prefix(ENDED) {
                        Some(code) => return code.parse().with_context(|| format!("the machine said {line:?}")),
                        None => heard(line.trim_end())?,
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    let length = fs::metadata(&self.console).map_or(0, |console| console.len());
                    if length != console {
                        (heard_at, console) = (Instant::now(), length);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine ended amid its job ({}); {}", self.qemu.wait()?, self.last_words())
                }
            }
            if Instant::now() > deadline {
                bail!("the machine did not end within {limit:?}; {}", self.last_words());
            }
            if heard_at.elapsed() > silence {
                bail!("the machine has said nothing for {silence:?}; {}", self.last_words());
            }
        }
    }

    /// Waits until it is switched off.
    pub(super) fn wait(mut self) -> Result<()> {
        let status = self.qemu.wait()?;
        if status.success() { Ok(()) } else { bail!("qemu ended with {status}; {}", self.last_words()) }
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        format!("{} ends:\n{}", self.console.display(), lines[lines.len().saturating_sub(30)..].join("\n"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in std::iter::once(&mut self.qemu).chain(&mut self.shares) {
            // It may have ended by itself, which is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lends the machine what is below `source`; the socket is `<tag>.sock` in the folder.
fn share(folder: &Path, tag: &str, source: &Path) -> Result<Child> {
    let program = VIRTIOFSD.into_iter().find(|path| Path::new(path).exists()).context("virtiofsd is missing: run scripts/setup")?;
    // By a short way: the path of a socket has 108 bytes at most.
    let open = File::open(folder)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{tag}.sock", open.as_raw_fd())).context("making a socket for virtiofsd")?;
    let log = File::create(folder.join(format!("virtiofsd-{tag}.log")))?;
    let mut virtiofsd = bound(program);
    virtiofsd.args(["-f", "--fd=0", "-o", &format!("source={},cache=always,sandbox=chroot", source.display())]);
    virtiofsd.stdin(Stdio::from(OwnedFd::from(listener))).stdout(log.try_clone()?).stderr(log);
    virtiofsd.spawn().context("starting virtiofsd")
}

/// A program that ends with this one, however that ends.
fn bound(program: &str) -> Command {
    let mut command = system_command("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}
