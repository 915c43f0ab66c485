//! The coordinator that is measured: one of our own, or one that runs already.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Certificate, Client, Method};
use serde_json::Value;
use tempfile::TempDir;

use crate::Options;

/// How long the coordinator may take to be ready.
const READY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) client: Client,
    pub(crate) url: String,
    token: String,
    own: Option<Own>,
}

/// A coordinator of our own.
#[derive(Debug)]
struct Own {
    child: Child,
    folder: TempDir,
    address: String,
}

impl Coordinator {
    pub(crate) async fn open(options: &Options) -> anyhow::Result<Self> {
        if let (Some(url), Some(file)) = (&options.url, &options.token_file) {
            let client = client(options.ca_file.as_deref())?;
            let token = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            return Ok(Self { client, url: url.trim_end_matches('/').to_owned(), token: token.trim().to_owned(), own: None });
        }
        let folder = tempfile::Builder::new().prefix("wattle-fleet-").tempdir()?;
        // A private Postgres may have to run as another user, who must get there.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            folder.path(),
            nix::sys::stat::Mode::from_bits_truncate(0o755),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        let address = format!("127.0.0.1:{}", TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
        let child = start(&folder, &address)?;
        let client = own_client(&folder.path().join("data/ca.crt")).await?;
        let url = format!("https://{address}");
        let mut coordinator = Self { client, url, token: String::new(), own: Some(Own { child, folder, address }) };
        coordinator.wait_ready().await?;
        let own = coordinator.own.as_ref().context("no coordinator of our own")?;
        let token = fs::read_to_string(own.folder.path().join("data/api-token")).context("cannot read the api token")?;
        coordinator.token = token.trim().to_owned();
        Ok(coordinator)
    }

    /// Process id of a coordinator of our own.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.own.as_ref().map(|own| own.child.id())
    }

    /// Kills a coordinator of our own and starts it again; `None` where it is not ours. Gives the time from the start until it was ready.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<Option<Duration>> {
        let Some(own) = &mut self.own else { return Ok(None) };
        own.child.kill()?;
        own.child.wait()?;
        let begin = Instant::now();
        own.child = start(&own.folder, &own.address)?;
        self.wait_ready().await?;
        Ok(Some(begin.elapsed()))
    }

    /// A request of the operator; an answer that is no success is an error.
    pub(crate) async fn admin(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut request = self.client.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{path} answered {status}: {text}");
        }
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }

    async fn wait_ready(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        let url = format!("{}/readyz", self.url);
        while !self.client.get(&url).send().await.is_ok_and(|response| response.status().is_success()) {
            if Instant::now() > deadline {
                bail!("the coordinator is not ready after {} s", READY.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Gracefully, so that its Postgres ends with it.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

/// A client that believes the authority of a file or, without one, the public ones.
fn client(ca_file: Option<&Path>) -> anyhow::Result<Client> {
    let mut builder = Client::builder();
    if let Some(file) = ca_file {
        let pem = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        builder = builder.tls_certs_only([Certificate::from_pem(&pem)?]);
    }
    // Requests are made side by side on connections of their own, as by many people.
    builder.http1_only().build().context("cannot make an HTTP client")
}

/// A client of a coordinator that is about to make its authority.
async fn own_client(ca_file: &Path) -> anyhow::Result<Client> {
    let deadline = Instant::now() + READY;
    while !ca_file.exists() {
        if Instant::now() > deadline {
            bail!("the coordinator made no {} within {} s", ca_file.display(), READY.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client(Some(ca_file))
}

fn start(folder: &TempDir, address: &str) -> anyhow::Result<Child> {
    let program = std::env::current_exe()?.with_file_name("wattle-server");
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.path().join("log"))?;
    let mut command = Command::new(&program);
    command.args(["--listen", address, "--data-dir"]).arg(folder.path().join("data")).env_remove("DATABASE_URL").env("RUST_LOG", "warn");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().with_context(|| format!("cannot start {}: build the workspace first", program.display()))
}
