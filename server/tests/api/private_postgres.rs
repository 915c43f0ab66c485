//! The private Postgres, and the program around it.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::harness::{SOON, among_others, client, reachable_folder};

/// `wattle-server` as a process.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    pub(crate) data_dir: PathBuf,
}

impl Program {
    /// Starts it and waits until it says where it serves.
    pub(crate) fn start(data_dir: &Path) -> Self {
        let mut child = program(data_dir)
            .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next().expect("it ended").unwrap();
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            if let Some(address) = line["fields"]["address"].as_str() {
                break address.to_owned();
            }
        };
        // Whoever writes to a pipe that nobody reads is stopped.
        thread::spawn(move || lines.for_each(drop));
        let client = client(data_dir);
        Self {
            child,
            client,
            url: format!("https://{address}"),
            data_dir: data_dir.to_owned(),
        }
    }

    async fn call(&self, token: &str, name: Option<&str>) -> u16 {
        let request = match name {
            Some(name) => self
                .client
                .post(format!("{}/sites", self.url))
                .json(&json!({"name": name})),
            None => self.client.get(format!("{}/sites/dublin", self.url)),
        };
        request
            .bearer_auth(token)
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    }

    fn end(mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
        let deadline = Instant::now() + SOON;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, tied to the life of this test.
pub(crate) fn program(data_dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig",
            "TERM",
            "--",
            env!("CARGO_BIN_EXE_wattle-server"),
            "--config",
            "/dev/null",
            "--data-dir",
        ])
        .arg(data_dir);
    command.env_remove("DATABASE_URL").stdin(Stdio::null());
    command
}

pub(crate) fn token(data_dir: &Path) -> String {
    fs::read_to_string(data_dir.join("api-token"))
        .unwrap()
        .trim()
        .to_owned()
}

fn postgres_of(data_dir: &Path) -> Vec<i32> {
    let data = data_dir.join("postgres/data");
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes
        .filter(|pid: &i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data))
        .collect()
}

fn wait_until_gone(data_dir: &Path) {
    let deadline = Instant::now() + SOON;
    while !postgres_of(data_dir).is_empty() {
        assert!(
            Instant::now() < deadline,
            "Postgres stays behind: {:?}",
            postgres_of(data_dir)
        );
        thread::park_timeout(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn a_second_start_finds_everything_even_after_a_kill() {
    let _company = among_others().await;
    let folder = reachable_folder();
    let data_dir = folder.path();
    let first = Program::start(data_dir);
    let token = token(data_dir);
    assert_eq!(
        fs::metadata(data_dir.join("api-token"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    assert_eq!(first.call(&token, Some("dublin")).await, 201);
    first.end(Signal::SIGKILL);

    // At once: the Postgres of the killed one may still be on its way down.
    let second = Program::start(data_dir);
    assert_eq!(second.call(&token, None).await, 200);
    second.end(Signal::SIGTERM);
    assert_eq!(postgres_of(data_dir), Vec::<i32>::new());

    let third = Program::start(data_dir);
    assert_eq!(third.call(&token, None).await, 200);
    third.end(Signal::SIGKILL);
    wait_until_gone(data_dir);
}

#[tokio::test]
async fn h7_systemd_is_told_that_the_coordinator_is_ready_and_lives_and_not_when_it_stands_still() {
    let _company = among_others().await;
    let data_dir = reachable_folder();
    let path = data_dir.path().join("notify");
    let systemd = UnixDatagram::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    systemd.set_read_timeout(Some(SOON)).unwrap();
    let hears = || {
        let mut buffer = [0; 100];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let mut command = program(data_dir.path());
    let child = command
        .args(["--listen", "127.0.0.1:0"])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .stderr(Stdio::null());
    let child = child.spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    assert_eq!(hears().trim(), "READY=1");
    let program = Program {
        child,
        url: String::new(),
        client: client(data_dir.path()),
        data_dir: data_dir.path().to_owned(),
    };
    for _ in 0..3 {
        assert_eq!(hears().trim(), "WATCHDOG=1");
    }
    kill(pid, Signal::SIGSTOP).unwrap();
    // What was on its way is heard yet.
    systemd
        .set_read_timeout(Some(Duration::from_millis(1000)))
        .unwrap();
    let mut buffer = [0; 100];
    let silent = (0..100).any(|_| systemd.recv(&mut buffer).is_err());
    assert!(silent, "it says that it lives while it stands still");
    kill(pid, Signal::SIGCONT).unwrap();
    program.end(Signal::SIGTERM);
}

#[tokio::test]
async fn a_postgres_that_dies_is_started_again() {
    let _company = among_others().await;
    let folder = reachable_folder();
    let server = Program::start(folder.path());
    let token = token(folder.path());
    assert_eq!(server.call(&token, Some("dublin")).await, 201);
    let pids = postgres_of(folder.path());
    kill(Pid::from_raw(*pids.iter().min().unwrap()), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + SOON;
    while server.call(&token, Some("frankfurt")).await != 201 {
        assert!(Instant::now() < deadline, "it does not come back");
    }
    assert_eq!(server.call(&token, None).await, 200);
    server.end(Signal::SIGINT);
    wait_until_gone(folder.path());
}

#[tokio::test]
async fn the_command_line_makes_lists_and_revokes_tokens_while_the_coordinator_runs_and_while_it_does_not()
 {
    let _company = among_others().await;
    let folder = reachable_folder();
    let data_dir = folder.path();
    let run = |arguments: &[&str]| {
        let output = program(data_dir).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let server = Program::start(data_dir);
    // Whoever asks for no role gets the least.
    let made = run(&["token", "create", "--name", "looks"]);
    assert_eq!(server.call(&made, Some("dublin")).await, 403);
    let made = run(&["token", "create", "--name", "ci", "--role", "operator"]);
    assert_eq!(server.call(&made, Some("dublin")).await, 201);
    let listed: Value = serde_json::from_str(&run(&["token", "list", "--json"])).unwrap();
    let roles: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|token| &token["role"])
        .collect();
    assert_eq!(roles, ["owner", "viewer", "operator"]);
    let events: Value = serde_json::from_str(&run(&["audit", "list", "--json"])).unwrap();
    assert_eq!(events[1]["object_name"], "ci", "{events}");
    let authorities: Value = serde_json::from_str(&run(&["ca", "list", "--json"])).unwrap();
    assert_eq!(authorities[0]["here"], "signs");
    let list = run(&["token", "list"]);
    let line = list
        .lines()
        .find(|line| line.ends_with("operator  ci"))
        .unwrap();
    run(&["token", "revoke", line.split_whitespace().next().unwrap()]);
    assert_eq!(server.call(&made, None).await, 401);
    server.end(Signal::SIGTERM);

    let made = run(&["token", "create", "--name", "later"]);
    // Where there is no mesh, none is made.
    let elsewhere = reachable_folder();
    let output = program(elsewhere.path())
        .args(["token", "list"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("there is no mesh in"), "{said}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(postgres_of(data_dir), Vec::<i32>::new());
    let server = Program::start(data_dir);
    assert_eq!(server.call(&made, None).await, 200);
    let second = wattle_server::postgres::Postgres::start(data_dir)
        .unwrap_err()
        .to_string();
    assert!(second.contains("another wattle-server uses"), "{second}");
}

#[test]
fn a_path_too_long_for_a_socket_works() {
    let folder = reachable_folder();
    let data_dir = folder.path().join("x".repeat(90));
    let postgres = wattle_server::postgres::Postgres::start(&data_dir).unwrap();
    let socket_folder = postgres.options().get_socket().unwrap().clone();
    assert!(!socket_folder.starts_with(&data_dir));
    postgres.stop();
    fs::remove_dir(socket_folder).unwrap();
}
