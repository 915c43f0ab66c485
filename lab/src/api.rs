//! The REST interface, as an operator uses it.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::runtime;
use wattle_client::operator::OperatorClient;
use wattle_wire::secret::Secret;

use crate::wait::Events;

/// Where the interface is, and who calls.
#[derive(Clone, Debug)]
pub struct Api {
    pub url: String,
    pub token: String,
    /// The certificate of the coordinator's authority.
    pub ca: PathBuf,
}

/// What the coordinator answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: String,
}

impl Api {
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.request("GET", path, None)?.expect(200)
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        self.request("POST", path, Some(&body.to_string()))?
            .expect(201)
    }

    pub fn delete(&self, path: &str) -> Result<()> {
        let answer = self.request("DELETE", path, None)?;
        // 200 where gateways wait for an operator's signature.
        if [200, 204].contains(&answer.status) {
            Ok(())
        } else {
            bail!("DELETE {path}: {answer:?}")
        }
    }

    /// What is new in the mesh from now on, as one `curl` hears it.
    pub fn changes(&self) -> Result<Events> {
        let mut curl = self.curl();
        curl.args(["--silent", "--no-buffer", "--header"])
            .arg(format!("Authorization: Bearer {}", self.token))
            .arg(format!("{}/events/stream", self.url));
        let mut curl = curl
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting curl")?;
        let news = curl.stdout.take().context("no pipe")?;
        fcntl(&news, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Events::of(vec![news.into()], vec![curl]))
    }

    /// `curl`, as the README has it: it believes this coordinator.
    pub fn curl(&self) -> Command {
        let mut command = Command::new("curl");
        command.env("CURL_CA_BUNDLE", &self.ca);
        command
    }

    /// One request, on a connection of its own; a body is sent as JSON, whatever is in it.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
        let authority = fs::read(&self.ca).context("reading the coordinator's authority")?;
        let token = Secret::new(self.token.clone());
        let client = OperatorClient::new(&self.url, Some(token), Some(&authority))?;
        let body = body.unwrap_or_default().to_owned();
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let answer = runtime.block_on(client.raw(method.parse()?, path, body.into()))?;
        let content_type = answer.headers().get("content-type");
        let content_type = content_type.map_or(Ok(""), |value| value.to_str())?;
        Ok(Answer {
            status: answer.status().as_u16(),
            content_type: content_type.to_owned(),
            body: answer.into_body(),
        })
    }
}

impl Answer {
    /// The body, if the status is the expected one.
    pub fn expect<T: DeserializeOwned>(self, status: u16) -> Result<T> {
        if self.status != status {
            bail!(
                "status {} where {status} was expected: {}",
                self.status,
                self.body
            );
        }
        serde_json::from_str(&self.body).with_context(|| format!("reading {}", self.body))
    }
}
