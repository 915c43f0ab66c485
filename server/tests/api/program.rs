//! The program: its settings, how it waits for its database, and what supervisors ask it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use wattle_server::postgres::Postgres;

use crate::{
    harness::{among_others, reachable_folder},
    private_postgres::{Program, program},
};

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn says(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn url(socket: &Path, user: &str) -> String {
    let socket = socket.to_str().unwrap();
    format!("postgres:///postgres?host={socket}&user={user}")
}

#[tokio::test]
async fn a_coordinator_waits_for_its_database_and_says_so() {
    let _company = among_others().await;
    let (folder, home) = (reachable_folder(), reachable_folder());
    // It is known where the socket will be, and nobody is there yet.
    let postgres = Postgres::start(home.path()).unwrap();
    let socket = postgres.options().get_socket().unwrap().clone();
    postgres.stop();
    let child = program(folder.path())
        .args(["--listen", "127.0.0.1:0", "--log-format", "json"])
        .env("DATABASE_URL", url(&socket, "wattle"))
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut running = Running(child);
    let lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
    let mut said = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let first = said.next().unwrap();
    let words = first["fields"]["message"].as_str().unwrap();
    assert!(
        words.contains("is not there yet, tries again in 1 s"),
        "{words}"
    );
    let _postgres = Postgres::start(home.path()).unwrap();
    assert!(said.any(|line| line["fields"]["message"] == "serves"));

    // What the time does not mend is told at once.
    let other = reachable_folder();
    let mut refused = program(other.path());
    refused
        .args(["--listen", "127.0.0.1:0"])
        .env("DATABASE_URL", url(&socket, "nobody"));
    let (well, said) = says(&mut refused);
    assert!(
        !well && said.contains("the database refuses the coordinator"),
        "{said}"
    );
}

#[tokio::test]
async fn a_supervisor_is_told_whether_the_coordinator_with_these_settings_is_ready() {
    let _company = among_others().await;
    let folder = reachable_folder();
    let check = |data_dir: &Path, port: &str| {
        let listen = format!("0.0.0.0:{port}");
        says(
            program(data_dir)
                .args(["healthcheck"])
                .env("WATTLE_LISTEN", listen),
        )
    };
    let nobody = free_port().to_string();
    let (well, said) = check(folder.path(), &nobody);
    assert!(!well && said.contains("ca.crt"), "{said}");
    let server = Program::start(folder.path());
    let port = server.url.rsplit(':').next().unwrap();
    assert_eq!(check(folder.path(), port), (true, String::new()));
    let (well, said) = check(folder.path(), &nobody);
    assert!(
        !well && said.contains(&format!("127.0.0.1:{nobody}")),
        "{said}"
    );
    // Another coordinator is not the one that is asked for.
    let other = reachable_folder();
    let another = Program::start(other.path());
    let port = another.url.rsplit(':').next().unwrap();
    assert!(!check(folder.path(), port).0);

    // One with a certificate that people gave, whatever its name is, and one without TLS.
    let third = reachable_folder();
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| third.path().join(name));
    let made = rcgen::generate_simple_self_signed(["coordinator.example".to_owned()]).unwrap();
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    for settings in [
        vec!["--tls-cert", certificate, "--tls-key", key],
        vec!["--insecure-http"],
    ] {
        let listen = format!("127.0.0.1:{}", free_port());
        let arguments = [&["--listen", listen.as_str()], &settings[..]].concat();
        let child = program(third.path())
            .args(&arguments)
            .args(["--log-format", "json"])
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .spawn();
        let mut running = Running(child.unwrap());
        let mut lines = BufReader::new(running.0.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("\"serves\"")));
        let health = says(program(third.path()).args(&arguments).arg("healthcheck"));
        assert_eq!(health, (true, String::new()), "{settings:?}");
    }
}

#[test]
fn a_file_of_settings_is_checked_and_refused_with_its_line() {
    let folder = reachable_folder();
    let file = folder.path().join("server.toml");
    let check = || {
        says(
            Command::new(env!("CARGO_BIN_EXE_wattle-server"))
                .args(["config", "check", "--config"])
                .arg(&file),
        )
    };
    let (well, said) = check();
    assert!(!well && said.contains("there is no "), "{said}");
    fs::write(&file, "# as usual\nlisten = \"127.0.0.1:8443\"\n").unwrap();
    let (well, said) = check();
    assert!(well && said.ends_with("server.toml is valid\n"), "{said}");
    fs::write(&file, "# as usual\nlisten = \"127.0.0.1\"\n").unwrap();
    let (well, said) = check();
    assert!(!well && said.contains("server.toml, line 2: "), "{said}");
}
