//! The REST interface, through `curl`, as a person uses it.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{process, wait::Events};

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
        curl.args(["--silent", "--no-buffer", "--noproxy", "*", "--header"])
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

    /// One request; a body is sent as JSON, whatever is in it.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
        let mut command = self.curl();
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--noproxy",
            "*",
            "--request",
            method,
        ]);
        command.args(["--header", &format!("Authorization: Bearer {}", self.token)]);
        if body.is_some() {
            command.args([
                "--header",
                "Content-Type: application/json",
                "--data-binary",
                "@-",
            ]);
        }
        // The status and the type on lines of their own after the body.
        command.args([
            "--write-out",
            "\n%{http_code}\n%{content_type}",
            &format!("{}{path}", self.url),
        ]);
        let text = process::run(command, body)?;
        let mut parts = text.rsplitn(3, '\n');
        let (Some(content_type), Some(status), Some(body)) =
            (parts.next(), parts.next(), parts.next())
        else {
            bail!("curl printed {text:?}");
        };
        Ok(Answer {
            status: status.parse()?,
            content_type: content_type.to_owned(),
            body: body.to_owned(),
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
