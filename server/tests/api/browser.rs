//! A real browser: Debian's chromium, driven by its chromium-driver.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fantoccini::{Client, ClientBuilder, Locator, elements::Element};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a page may take to show what it should; a browser that starts beside a build is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one tab; it goes with this value.
pub(crate) struct Browser {
    pub(crate) client: Client,
    driver: Driver,
    _profile: TempDir,
}

struct Driver {
    process: Child,
    url: String,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The browser hangs on a pipe of the driver's, and ends with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Driver {
    fn start() -> Self {
        let started = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let mut process = started.expect("chromedriver has to be installed: scripts/setup");
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // "ChromeDriver was started successfully on port 40123."
        let port = lines.map_while(Result::ok).find_map(|line| {
            line.strip_suffix('.')?
                .rsplit_once("on port ")?
                .1
                .parse::<u16>()
                .ok()
        });
        Self {
            process,
            url: format!(
                "http://127.0.0.1:{}",
                port.expect("chromedriver says its port")
            ),
        }
    }
}

impl Browser {
    /// Opens the page of a coordinator at a URL.
    pub(crate) async fn open(url: &str) -> Self {
        let driver = Driver::start();
        let profile = TempDir::new().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--lang=en-GB",
            "--window-size=1280,1000",
            "--remote-debugging-pipe",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        // The coordinator's certificate is of an authority of its own.
        let capabilities = json!({
            "acceptInsecureCerts": true,
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("it is an object")
        };
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&driver.url)
            .await
            .unwrap();
        client.goto(url).await.unwrap();
        Self {
            client,
            driver,
            _profile: profile,
        }
    }

    pub(crate) async fn sign_in(&self, token: &str) {
        self.fill("#token", token).await;
        self.click("form.sign-in button").await;
    }

    /// Waits until the element is there.
    pub(crate) async fn find(&self, css: &str) -> Element {
        let found = self
            .client
            .wait()
            .at_most(PATIENCE)
            .for_element(Locator::Css(css))
            .await;
        match found {
            Ok(element) => element,
            Err(error) => panic!("{css}: {error}; the page: {}", self.text("body").await),
        }
    }

    /// Clicks the element when it is there. The page puts a new one in its place whenever something
    /// is new.
    pub(crate) async fn click(&self, css: &str) {
        self.until(&format!("{css} is clicked"), async || {
            match self.find(css).await.click().await {
                Err(error) if error.is_stale_element_reference() => false,
                clicked => {
                    clicked.unwrap();
                    true
                }
            }
        })
        .await;
    }

    /// Puts a text into a field in place of what is there.
    pub(crate) async fn fill(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// The text of the first such element, as it is seen; empty when there is none.
    pub(crate) async fn text(&self, css: &str) -> String {
        let script = "return document.querySelector(arguments[0])?.innerText ?? ''";
        self.run(script, json!([css]))
            .await
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until the text of an element holds a phrase.
    pub(crate) async fn see(&self, css: &str, phrase: &str) {
        self.until(&format!("{css} says {phrase:?}"), async || {
            self.text(css).await.contains(phrase)
        })
        .await;
    }

    /// Waits until something holds.
    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds().await {
            assert!(
                tokio::time::Instant::now() < deadline,
                "not in time: {what}; the page: {}",
                self.text("body").await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a script returns.
    pub(crate) async fn run(&self, script: &str, arguments: Value) -> Value {
        let Value::Array(arguments) = arguments else {
            panic!("arguments are a list")
        };
        self.client.execute(script, arguments).await.unwrap()
    }

    pub(crate) async fn go(&self, hash: &str) {
        self.run("location.hash = arguments[0]", json!([hash]))
            .await;
    }

    /// Dark or light, and how wide the screen is, in pixels.
    pub(crate) async fn become_(&self, scheme: &str, width: u32) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.command("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
        let mobile = width < 700;
        let metrics = json!({"width": width, "height": 1000, "deviceScaleFactor": if mobile { 2 } else { 1 }, "mobile": mobile});
        self.command("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// Keeps a picture of the page below the build folder, as `page/<name>.png`.
    pub(crate) async fn keep(&self, name: &str) {
        let folder = pictures();
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join(format!("{name}.png")),
            self.client.screenshot().await.unwrap(),
        )
        .unwrap();
    }

    /// What the browser complained of: scripts that failed, files that the policy forbids. Answers
    /// of the coordinator with an error are no complaint.
    pub(crate) async fn complaints(&self) -> Vec<String> {
        let entries = self
            .driver(Method::POST, "se/log", json!({"type": "browser"}))
            .await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let texts = entries
            .iter()
            .filter(|entry| entry["source"] != "network")
            .map(|entry| entry["message"].as_str().unwrap_or_default());
        texts.map(str::to_owned).collect()
    }

    /// A command of the `DevTools` protocol.
    async fn command(&self, name: &str, parameters: Value) {
        self.driver(
            Method::POST,
            "goog/cdp/execute",
            json!({"cmd": name, "params": parameters}),
        )
        .await;
    }

    async fn driver(&self, method: Method, path: &str, body: Value) -> Value {
        let session = self.client.session_id().await.unwrap().unwrap();
        let url = format!("{}/session/{session}/{path}", self.driver.url);
        let answer = reqwest::Client::new()
            .request(method, url)
            .json(&body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json::<Value>().await.unwrap()["value"].take()
    }
}

fn pictures() -> PathBuf {
    let exe = env::current_exe().unwrap();
    let build = exe
        .ancestors()
        .find(|folder| folder.ends_with("deps"))
        .and_then(Path::parent)
        .expect("a test runs from the build folder");
    build.with_file_name("page")
}
