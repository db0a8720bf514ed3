//! A headless Chromium, told what to do by the DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::process;

/// A browser that does not answer for so long is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Width and height of the page.
const SIZE: &str = "--window-size=760,700";

/// A browser with one page. It ends when this is dropped.
pub struct Browser {
    child: Child,
    profile: PathBuf,
    socket: Option<WebSocket<TcpStream>>,
    calls: u64,
    /// The page's, once there is one.
    session: Option<String>,
    version: String,
}

impl Browser {
    /// Starts a browser with an empty profile.
    pub fn open(program: &Path, flags: &[&str]) -> Result<Self> {
        let profile =
            process::root().join(format!("target/browser-profile-{}", std::process::id()));
        let child = Command::new(program)
            // It opens no page but ours, and root has no sandbox.
            .args(["--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0"])
            .args(["--hide-scrollbars", SIZE])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(flags)
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let (calls, session, version) = (0, None, String::new());
        let mut browser = Self { child, profile, socket: None, calls, session, version };
        browser.connect()?;
        browser.version = said(&browser.call("Browser.getVersion", json!({}))?["product"])?;
        let targets = browser.call("Target.getTargets", json!({}))?;
        let targets = targets["targetInfos"].as_array().context("no list of pages")?;
        let page = targets.iter().find(|target| target["type"] == "page").context("no page")?;
        let whole = json!({ "targetId": page["targetId"], "flatten": true });
        browser.session = Some(said(&browser.call("Target.attachToTarget", whole)?["sessionId"])?);
        Ok(browser)
    }

    /// Connects to the address that the browser prints.
    fn connect(&mut self) -> Result<()> {
        let printed = self.child.stderr.take().context("no output")?;
        let (sender, receiver) = mpsc::channel();
        // To the end: a browser whose output is not read stops.
        thread::spawn(move || {
            for line in BufReader::new(printed).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    sender.send(url.to_owned()).ok();
                }
            }
        });
        let url = receiver.recv_timeout(PATIENCE).context("the browser named no address")?;
        let address = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next());
        let stream = TcpStream::connect(address.with_context(|| format!("address {url}"))?)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (socket, _) = tungstenite::client(url, stream).map_err(|error| anyhow!("{error}"))?;
        self.socket = Some(socket);
        Ok(())
    }

    /// Name and version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Calls a method, of the page as soon as there is one, and waits for its answer.
    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let socket = self.socket.as_mut().context("not connected")?;
        socket.send(Message::text(message.to_string()))?;
        loop {
            let answer = socket.read().with_context(|| format!("no answer to {method}"))?;
            let Message::Text(text) = answer else { continue };
            let mut answer: Value = serde_json::from_str(&text)?;
            // Others are events.
            if answer["id"] == self.calls {
                match answer["error"].take() {
                    Value::Null => return Ok(answer["result"].take()),
                    error => bail!("{method}: {error}"),
                }
            }
        }
    }

    /// Opens an address.
    pub fn go_to(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        match answer["errorText"].as_str() {
            Some(error) => bail!("{url}: {error}"),
            None => Ok(()),
        }
    }

    /// The value of an expression in the page.
    pub fn evaluate<T: DeserializeOwned>(&mut self, expression: &str) -> Result<T> {
        let whole = json!({ "expression": expression, "returnByValue": true });
        let mut answer = self.call("Runtime.evaluate", whole)?;
        serde_json::from_value(answer["result"]["value"].take())
            .with_context(|| format!("`{expression}` is not what was expected: {answer}"))
    }

    /// The page as a PNG.
    pub fn screenshot(&mut self) -> Result<Vec<u8>> {
        let answer = self.call("Page.captureScreenshot", json!({}))?;
        let text = answer["data"].as_str().context("no picture")?;
        data_encoding::BASE64.decode(text.as_bytes()).context("the picture is not base64")
    }

    /// Most memory that the process of the GPU had, on Linux.
    pub fn gpu_bytes(&mut self) -> Option<u64> {
        // A question to the browser, not to its page.
        let page = self.session.take();
        let answer = self.call("SystemInfo.getProcessInfo", json!({}));
        self.session = page;
        let answer = answer.ok()?;
        let processes = answer["processInfo"].as_array()?;
        let id = processes.iter().find(|process| process["type"] == "GPU")?["id"].as_u64()?;
        let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(1024 * kib)
    }
}

fn said(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).context("an answer without text")
}

impl Drop for Browser {
    fn drop(&mut self) {
        // What fails here is gone already.
        self.session = None;
        if self.socket.is_none() || self.call("Browser.close", json!({})).is_err() {
            self.child.kill().ok();
        }
        self.child.wait().ok();
        fs::remove_dir_all(&self.profile).ok();
    }
}
