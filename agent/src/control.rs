//! The socket on which the running agent answers the commands of its host: one line of JSON each
//! way. Who may open the socket may ask: root, and the group of the agent's user.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tracing::warn;
use wattle_mesh::agent::node::RotatedKey;
use wattle_wire::{
    ids::Position,
    key::{IdentityKey, WireguardKey},
    name::Name,
};

use crate::config::Settings;

/// How long the agent may take to answer: it may be listing a long firewall.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a command may take to ask.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// Longest request in bytes: some thousand addresses to ping.
const LONGEST_REQUEST: u64 = 64 * 1024;
/// How many requests wait for the loop at once.
const MOST_WAITING: usize = 8;

/// What a command asks of the running agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// What [`crate::status::Status`] says.
    Status,
    /// What would be done to the host: [`crate::status::Planned`].
    Plan,
    /// What stands in the way of packets: [`crate::doctor::Examined`], or nothing from an agent that
    /// waits for a join.
    Doctor,
    /// What there is to try between the sites: [`crate::verify::Trial`].
    Verify(Asked),
    /// To carry out what waits for somebody on this host: [`Confirmed`].
    Confirm,
    /// To change a key; the present [`Keys`].
    Rotate(RotatedKey),
    /// To end the tokens that the node signed until now; the generation of those to come.
    RenewTokens,
    /// How far a change of keys has come: [`Keys`].
    Keys,
}

/// What a person asks to be tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// Hosts to ping.
    pub(crate) hosts: Vec<IpAddr>,
    /// Services to connect to.
    pub(crate) tcp: Vec<SocketAddr>,
}

/// What was confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    /// Names of the peers that go.
    pub(crate) removals: Vec<Name>,
    /// Names of the peers that had been removed and are back.
    pub(crate) returned: Vec<Name>,
    /// The older position from which the coordinator is followed.
    pub(crate) rolled_back_to: Option<Position>,
}

/// The node's own keys, and whether one is to be another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Keys {
    pub(crate) wireguard: WireguardKey,
    pub(crate) identity: IdentityKey,
    /// Why nothing came of the last request to change one.
    pub(crate) problem: Option<String>,
    /// Names of the peers whose preshared key is still the one of before it was asked for.
    pub(crate) preshared_with: Vec<String>,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    answer: oneshot::Sender<Answer>,
}

/// The answer, or why there is none.
type Answer = Result<serde_json::Value, String>;

impl Call {
    pub(crate) fn answer<T: Serialize>(self, answer: Result<T, String>) {
        let answer = answer
            .and_then(|answer| serde_json::to_value(answer).map_err(|error| error.to_string()));
        // Who asked may have gone away.
        let _ = self.answer.send(answer);
    }
}

/// The agent's end of the socket.
#[derive(Debug)]
pub(crate) struct Control {
    asked: mpsc::Receiver<Call>,
    listening: Option<(JoinHandle<()>, PathBuf)>,
}

impl Control {
    /// Listens. Without the socket the agent works all the same, and commands read what is on disk.
    pub(crate) fn open(settings: &Settings) -> Self {
        let (sender, asked) = mpsc::channel(MOST_WAITING);
        let path = settings.socket();
        let listening = match bind(&path) {
            Ok(listener) => Some((tokio::spawn(listen(listener, sender)), path)),
            Err(error) => {
                warn!("commands on this host cannot ask the agent: {error:#}");
                None
            }
        };
        Self { asked, listening }
    }

    /// Waits for the next request.
    pub(crate) async fn asked(&mut self) -> Call {
        match self.asked.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some((listening, path)) = &self.listening {
            listening.abort();
            let _ = fs::remove_file(path);
        }
    }
}

/// Replaces a socket that an agent of before left: this one alone holds the state directory.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o750).create(folder);
        made.with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", path.display()));
    }
    let listener = UnixListener::bind(path)
        .and_then(|listener| {
            fs::set_permissions(path, Permissions::from_mode(0o660))?;
            Ok(listener)
        })
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(listener)
}

async fn listen(listener: UnixListener, sender: mpsc::Sender<Call>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve(stream, sender.clone()))),
            Err(error) => {
                warn!("cannot take a command's request: {error}");
                tokio::time::sleep(ASK_LIMIT).await;
            }
        }
    }
}

/// Takes one request and gives its answer. Who sends nothing or something else is hung up on.
async fn serve(stream: UnixStream, sender: mpsc::Sender<Call>) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(LONGEST_REQUEST));
    timeout(ASK_LIMIT, reader.read_line(&mut line))
        .await
        .ok()?
        .ok()?;
    let answer: Answer = match serde_json::from_str(&line) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            sender.send(Call { request, answer }).await.ok()?;
            answered.await.ok()?
        }
        Err(_) => Err("the running agent is of another version: restart it".to_owned()),
    };
    let answer = serde_json::to_vec(&answer).ok()?;
    timeout(ANSWER_LIMIT, writer.write_all(&answer))
        .await
        .ok()?
        .ok()
}

/// Asks the agent that runs here. `None` means that none does.
///
/// # Errors
///
/// When this user may not ask, when the agent does not answer, and what it says against it.
pub(crate) async fn ask<T: DeserializeOwned>(
    settings: &Settings,
    request: Request,
) -> anyhow::Result<Option<T>> {
    let path = settings.socket();
    let mut stream = match UnixStream::connect(&path).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(error).with_context(|| {
                format!(
                    "cannot ask the agent at {}: run this as root, or as a member of the group \
                     that owns the socket",
                    path.display()
                )
            });
        }
        Err(_) => return Ok(None),
    };
    let mut answer = Vec::new();
    let exchange = async {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        stream.write_all(&line).await?;
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(())
    };
    timeout(ANSWER_LIMIT, exchange)
        .await
        .map_err(|_| {
            let limit = ANSWER_LIMIT.as_secs();
            anyhow!("the running agent did not answer within {limit} s: see its log")
        })?
        .context("the running agent hung up")?;
    let answer: Answer =
        serde_json::from_slice(&answer).context("the running agent hung up: see its log")?;
    let answer = answer.map_err(|problem| anyhow!(problem))?;
    let answer = serde_json::from_value(answer);
    answer
        .map(Some)
        .context("the running agent is of another version: restart it")
}

/// As [`ask`], for what only a running agent can do.
pub(crate) async fn ask_running<T: DeserializeOwned>(
    settings: &Settings,
    request: Request,
) -> anyhow::Result<T> {
    ask(settings, request).await?.with_context(|| {
        format!(
            "no agent runs here (nobody answers on {}): start `wattle-agent run`",
            settings.socket().display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_refused_and_without_an_agent_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::in_folder(folder.path());
        assert_eq!(
            ask::<String>(&settings, Request::Status).await.unwrap(),
            None
        );
        for _ in 0..2 {
            let mut control = Control::open(&settings);
            let mode = fs::metadata(settings.socket())
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o660);
            let agent = tokio::spawn(async move {
                let asked = control.asked().await;
                assert_eq!(asked.request, Request::Rotate(RotatedKey::Identity));
                asked.answer(Ok("done"));
                control.asked().await.answer(Err::<(), _>("no".to_owned()));
                control
            });
            let rotate = Request::Rotate(RotatedKey::Identity);
            assert_eq!(
                ask::<String>(&settings, rotate).await.unwrap().as_deref(),
                Some("done")
            );
            let refused = ask_running::<()>(&settings, Request::Confirm).await;
            assert_eq!(format!("{:#}", refused.unwrap_err()), "no");
            // An agent that was killed leaves its socket, and the next takes its place.
            std::mem::forget(agent.await.unwrap());
        }
    }

    #[tokio::test]
    async fn who_sends_something_else_is_told_so_and_the_agent_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings::in_folder(folder.path());
        let _control = Control::open(&settings);
        for sent in [&b"hello\n"[..], b"\n", &[b'x'; 4096]] {
            let mut stream = UnixStream::connect(settings.socket()).await.unwrap();
            let mut said = String::new();
            // Of a long one the agent reads a part and hangs up.
            let _ = stream.write_all(sent).await;
            let _ = stream.shutdown().await;
            let read = stream.read_to_string(&mut said).await;
            assert!(
                read.is_err() || said.contains("of another version"),
                "{said}"
            );
        }
    }
}
