//! The coordinators that are measured: our own, or some that run already.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Certificate, Client, Method};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use wattle_wire::{admin::Readiness, ids::Position};

use crate::Options;

/// How long a coordinator may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// For how long a connection is kept for the next request: less than coordinators keep one that
/// says nothing.
const POOLED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Coordinators {
    pub(crate) client: Client,
    pub(crate) urls: Vec<String>,
    token: String,
    /// Coordinators of our own, the one with the Postgres last to go; empty where they are somebody
    /// else's.
    own: Vec<Own>,
    _folder: Option<TempDir>,
}

/// A coordinator of our own.
#[derive(Debug)]
struct Own {
    child: Child,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Coordinators {
    pub(crate) async fn open(options: &Options) -> anyhow::Result<Self> {
        if let Some(file) = &options.token_file {
            let client = client(options.ca_file.as_deref())?;
            let token = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let urls: Vec<_> = options
                .url
                .iter()
                .map(|url| url.trim_end_matches('/').to_owned())
                .collect();
            anyhow::ensure!(
                !urls.is_empty(),
                "--token-file is for the coordinator of --url"
            );
            return Ok(Self {
                client,
                urls,
                token: token.trim().to_owned(),
                own: vec![],
                _folder: None,
            });
        }
        let folder = tempfile::Builder::new().prefix("wattle-fleet-").tempdir()?;
        // A private Postgres may have to run as another user, who must get there.
        nix::sys::stat::fchmodat(
            nix::fcntl::AT_FDCWD,
            folder.path(),
            nix::sys::stat::Mode::from_bits_truncate(0o755),
            nix::sys::stat::FchmodatFlags::FollowSymlink,
        )?;
        let mut coordinators = Self {
            client: client(None)?,
            urls: vec![],
            token: String::new(),
            own: vec![],
            _folder: None,
        };
        let scheme = if options.insecure_http {
            "http"
        } else {
            "https"
        };
        for number in 0..options.replicas {
            let address = format!(
                "127.0.0.1:{}",
                TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()
            );
            let data = folder.path().join(format!("data-{number}"));
            let mut arguments = vec![
                "--listen".to_owned(),
                address.clone(),
                "--data-dir".to_owned(),
                data.display().to_string(),
            ];
            if options.insecure_http {
                arguments.push("--insecure-http".to_owned());
            }
            if number > 0 {
                if !options.insecure_http {
                    // All coordinators of a mesh show certificates of one authority.
                    fs::create_dir(&data)?;
                    fs::copy(folder.path().join("data-0/ca.pem"), data.join("ca.pem"))?;
                }
                arguments.extend([
                    "--database-url".to_owned(),
                    postgres_of(&folder.path().join("data-0"))?,
                ]);
            }
            let log = folder.path().join(format!("log-{number}"));
            coordinators.own.push(Own {
                child: start(&arguments, &log)?,
                arguments,
                log,
            });
            coordinators.urls.push(format!("{scheme}://{address}"));
            if number == 0 && !options.insecure_http {
                coordinators.client = own_client(&data.join("ca.crt")).await?;
            }
            coordinators.wait_ready(number as usize).await?;
        }
        coordinators.token = fs::read_to_string(folder.path().join("data-0/api-token"))
            .context("cannot read the api token")?
            .trim()
            .to_owned();
        coordinators._folder = Some(folder);
        Ok(coordinators)
    }

    /// Process ids of coordinators of our own.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.own.iter().map(|own| own.child.id()).collect()
    }

    /// Kills a coordinator of our own: one of several, which stays away, or the only one, which is
    /// started again. Gives the time until the agents had one that is ready; `None` where they are
    /// not ours.
    pub(crate) async fn kill_one(&mut self) -> anyhow::Result<Option<Duration>> {
        let begin = Instant::now();
        let Some(mut own) = self.own.pop() else {
            return Ok(None);
        };
        own.child.kill()?;
        own.child.wait()?;
        if self.own.is_empty() {
            own.child = start(&own.arguments, &own.log)?;
            self.own.push(own);
            self.wait_ready(0).await?;
        } else {
            self.urls.pop();
        }
        Ok(Some(begin.elapsed()))
    }

    /// A request of the operator; an answer that is no success is an error.
    pub(crate) async fn admin<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<A> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.urls[0]))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("{path} answered {status}: {text}");
        }
        Ok(serde_json::from_str(if text.is_empty() {
            "null"
        } else {
            &text
        })?)
    }

    /// How far a coordinator has come.
    pub(crate) async fn position(&self) -> anyhow::Result<Position> {
        Ok(self
            .admin::<Readiness>(Method::GET, "/readyz", None)
            .await?
            .position)
    }

    /// How many letters wait in the mailbox.
    pub(crate) async fn letters(&self) -> anyhow::Result<u64> {
        let request = self
            .client
            .get(format!("{}/metrics", self.urls[0]))
            .bearer_auth(&self.token);
        let text = request.send().await?.error_for_status()?.text().await?;
        let letters = text
            .lines()
            .find_map(|line| line.strip_prefix("wattle_mailbox_letters ")?.parse().ok());
        letters.context("the metrics tell of no mailbox")
    }

    async fn wait_ready(&self, index: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY;
        let url = format!("{}/readyz", self.urls[index]);
        while !self
            .client
            .get(&url)
            .send()
            .await
            .is_ok_and(|response| response.status().is_success())
        {
            if Instant::now() > deadline {
                bail!("the coordinator is not ready after {} s", READY.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Coordinators {
    fn drop(&mut self) {
        // The one with the Postgres last.
        while let Some(mut own) = self.own.pop() {
            // Gracefully, so that its Postgres ends with it.
            if let Ok(pid) = i32::try_from(own.child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
            let _ = own.child.wait();
        }
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
    builder
        .http1_only()
        .pool_max_idle_per_host(128)
        .pool_idle_timeout(POOLED)
        .build()
        .context("cannot make an HTTP client")
}

/// A client of a coordinator that is about to make its authority.
async fn own_client(ca_file: &Path) -> anyhow::Result<Client> {
    let deadline = Instant::now() + READY;
    while !ca_file.exists() {
        if Instant::now() > deadline {
            bail!(
                "the coordinator made no {} within {} s",
                ca_file.display(),
                READY.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client(Some(ca_file))
}

fn start(arguments: &[String], log: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe()?.with_file_name("wattle-server");
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_remove("DATABASE_URL")
        .env("RUST_LOG", "warn")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    command.spawn().with_context(|| {
        format!(
            "cannot start {}: build the workspace first",
            program.display()
        )
    })
}

/// The URL of the private Postgres of a coordinator; the fourth and fifth line of its
/// `postmaster.pid` are port and folder of its socket.
fn postgres_of(data_dir: &Path) -> anyhow::Result<String> {
    let file = data_dir.join("postgres/data/postmaster.pid");
    let text =
        fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut lines = text.lines().skip(3);
    let (port, socket) = lines
        .next()
        .zip(lines.next())
        .context("the Postgres is not ready")?;
    Ok(format!(
        "postgres://wattle@localhost/postgres?host={socket}&port={port}"
    ))
}
