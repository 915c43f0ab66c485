//! What a coordinator in the wrong hands says, and what of it reaches a terminal and the log.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wattle_lab::{
    Gateway, Lab,
    gateway::STATE_DIR,
    patience,
    process::{self, quoted},
    site::DUBLIN,
    wait_for,
};
use wattle_wire::{
    ids::{MeshId, SiteId, TokenId},
    join::JoinString,
    key::WireguardKey,
    problem::PROBLEM_JSON,
    secret::Secret,
    text::is_unseen,
};

/// Sets a title, clears the screen, changes colours, forges a line, goes back in the line, and turns
/// the direction of what is read.
const HOSTILE: &str = "told\u{1b}]0;title\u{7}\u{1b}[2J\u{9b}31m\nforged: all is well\r\
     \u{202e}a\u{2066}b\u{200f}\u{61c}\u{7f}\u{2028}end";
const ID: &str = "01890000-0000-7000-8000-000000000001";

pub(crate) fn d11_nothing_that_a_coordinator_says_is_obeyed_by_a_terminal_or_forges_a_line_of_the_log(
    folder: &Path,
) -> Result<()> {
    let mut lab = Lab::build(folder, &[DUBLIN])?;
    let dublin = lab.gateway(DUBLIN)?;
    dublin.host.run("ip link set lo up")?;
    let listener = dublin
        .host
        .in_its_network(|| Ok(TcpListener::bind("127.0.0.1:8080")?))?;
    let joins = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&joins);
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let joins = Arc::clone(&counted);
            // A connection that breaks is the agent's to notice.
            thread::spawn(move || drop(serve(connection, &joins)));
        }
    });
    let join = JoinString {
        urls: vec!["http://127.0.0.1:8080".to_owned()],
        mesh: MeshId(ID.parse()?),
        site: SiteId(ID.parse()?),
        pins: Vec::new(),
        token: TokenId(ID.parse()?),
        secret: Secret::new("secret".to_owned()),
    };
    let join = join.to_string();

    // A problem, a name that is none, and then a good answer.
    for expected in [
        "told\\u{1b}]0;title",
        "a name has 1 to 63",
        "joined as node dublin",
    ] {
        joins.fetch_add(1, Ordering::Relaxed);
        let said = at_a_terminal(dublin, &format!("join {}", quoted(&join)))?;
        ensure!(said.contains(expected), "{said}");
    }
    lab.gateway_mut(DUBLIN)?.start_agent()?;
    let log = folder.join("dublin-agent.log");
    wait_for("the log has what was said", patience(20.0), || {
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains("told\\u{1b}]0;title"), "{log}");
        Ok(())
    })?;
    is_plain(&std::fs::read(&log)?)?;
    let dublin = lab.gateway(DUBLIN)?;
    for command in [
        "status",
        "history",
        "doctor",
        "status --json",
        "doctor --json",
    ] {
        at_a_terminal(dublin, command)?;
    }
    Ok(())
}

/// What a command of the agent writes to a terminal, but for the colours of its own.
fn at_a_terminal(gateway: &Gateway, command: &str) -> Result<String> {
    let program = quoted(&gateway.program().display().to_string());
    let line = format!("NO_COLOR=1 {program} --state-dir {STATE_DIR} {command}");
    let mut script = gateway.host.command("script");
    script.args(["--quiet", "--command", &line, "/dev/null"]);
    let written = process::output(&mut script, None)?.stdout;
    is_plain(&written).with_context(|| command.to_owned())?;
    Ok(String::from_utf8(written)?)
}

/// Nothing is written that a terminal would obey or not show, but whole lines; none is forged.
fn is_plain(written: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(written)?.replace("\r\n", "\n");
    let bad = text.chars().find(|c| *c != '\n' && is_unseen(*c));
    ensure!(bad.is_none(), "{bad:?} in {text:?}");
    ensure!(
        !text.lines().any(|line| line.starts_with("forged")),
        "{text}"
    );
    Ok(())
}

/// Answers the requests of one connection. `joins` is how often a machine has tried to join.
fn serve(connection: TcpStream, joins: &AtomicUsize) -> Result<()> {
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        let path = request.split(' ').nth(1).unwrap_or_default();
        let (status, body) = answer(path, joins.load(Ordering::Relaxed))?;
        let kind = if status == 200 {
            "application/json"
        } else {
            PROBLEM_JSON
        };
        let body = body.to_string();
        write!(
            &connection,
            "HTTP/1.1 {status} Said\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
    }
}

fn answer(path: &str, joins: usize) -> Result<(u16, Value)> {
    let mut base = [0; 32];
    base[0] = 9;
    let key = WireguardKey::try_from(base)?;
    let name = if joins == 2 { HOSTILE } else { "dublin" };
    Ok(match (path, joins) {
        ("/agent/enrol/start", 2..) => (200, json!({"nonce": key, "server_key": key})),
        ("/agent/enrol/finish", _) => {
            let enrolled = json!({"mesh": ID, "node": ID, "name": name, "site": name,
                "site_id": ID, "generation": 1});
            (200, enrolled)
        }
        _ => {
            let problem = json!({"code": HOSTILE, "title": HOSTILE, "status": 409,
                "detail": HOSTILE, "field": HOSTILE,
                "holder": {"site": HOSTILE, "holds": HOSTILE}});
            (409, problem)
        }
    })
}
