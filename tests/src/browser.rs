//! A headless Chromium that a test leads, by the WebDriver protocol (W3C Recommendation) of its chromedriver. It reaches this
//! machine alone.
//!
//! The protocol is spoken here, in a few requests: the libraries for it bring a second HTTP stack and a licence that this
//! project does not take.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Longest wait for something to appear on a page.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// For one answer of chromedriver.
const DEADLINE: Duration = Duration::from_secs(60);
/// The key under which an element is named (W3C WebDriver, "Elements").
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. Dropping it ends it and all its processes.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
    profile: TempDir,
}

impl Browser {
    /// Starts one of this many pixels.
    ///
    /// # Errors
    /// When Chromium or chromedriver is not there or does not start; in words for whoever runs the test.
    pub async fn start(width: u32, height: u32) -> Result<Self> {
        let mut command = Command::new("chromedriver");
        command
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0);
        let driver = command
            .spawn()
            .context("there is no chromedriver; install the packages chromium and chromium-driver")?;
        let mut browser = Self { driver, port: 0, session: String::new(), profile: tempfile::tempdir()? };
        let out = browser.driver.stdout.take().context("piped")?;
        let port = tokio::task::spawn_blocking(move || port_told(BufReader::new(out)));
        browser.port = tokio::time::timeout(DEADLINE, port).await.context("chromedriver is silent")???;
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            "--no-proxy-server",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
            &format!("--window-size={width},{height}"),
            &format!("--user-data-dir={}", browser.profile.path().display()),
        ];
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": { "args": arguments } } } });
        let session = browser.send("POST", "/session", &wanted).await.context("chromium does not start")?;
        browser.session = session["sessionId"].as_str().context("no session")?.to_owned();
        Ok(browser)
    }

    /// Opens an address.
    ///
    /// # Errors
    /// When the browser cannot, such as when nobody answers there.
    pub async fn open(&self, url: &str) -> Result<()> {
        self.ask("POST", "url", &json!({ "url": url })).await?;
        Ok(())
    }

    /// What a piece of JavaScript returns, its promise awaited.
    ///
    /// # Errors
    /// What it throws.
    pub async fn run(&self, script: &str) -> Result<Value> {
        let body = format!("return (async () => {{ {script} }})();");
        self.ask("POST", "execute/sync", &json!({ "script": body, "args": [] })).await
    }

    /// All text that the page shows.
    ///
    /// # Errors
    /// When there is no page.
    pub async fn text(&self) -> Result<String> {
        let text = self.run("return document.body?.innerText ?? ''").await?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the page shows all of these texts.
    ///
    /// # Errors
    /// When the time is over; with what is shown instead.
    pub async fn shows(&self, texts: &[&str]) -> Result<()> {
        self.until(&format!("the page shows {texts:?}"), async || {
            let shown = self.text().await.unwrap_or_default();
            texts.iter().all(|text| shown.contains(text))
        })
        .await
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When the time is over; with what the page shows.
    pub async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) -> Result<()> {
        let end = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < end {
            if holds().await {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!(
            "waited {PATIENCE:?} in vain: {what}; the page shows {:?}",
            self.text().await.unwrap_or_default()
        )
    }

    /// Clicks the first button, link or switch that shows this text, as a person would, once there is one that can be.
    ///
    /// # Errors
    /// When none comes.
    pub async fn click(&self, text: &str) -> Result<()> {
        let script = format!(
            "return [...document.querySelectorAll('button, a, summary, label')].find((one) => !one.disabled \
             && one.innerText.trim() === {text:?} && one.getClientRects().length) ?? null"
        );
        let element = self.element(&script, text).await?;
        self.ask("POST", &format!("element/{element}/click"), &json!({})).await?;
        Ok(())
    }

    /// Types into the field with this label, what was in it first taken away.
    ///
    /// # Errors
    /// When there is no such field.
    pub async fn type_into(&self, label: &str, text: &str) -> Result<()> {
        let script = format!(
            "const named = (one) => (one.labels?.[0]?.innerText ?? one.getAttribute('aria-label') ?? '').trim(); \
             return [...document.querySelectorAll('input, textarea')].find((one) => named(one).startsWith({label:?}) \
             && !one.disabled) ?? null"
        );
        let element = self.element(&script, label).await?;
        self.ask("POST", &format!("element/{element}/clear"), &json!({})).await?;
        self.ask("POST", &format!("element/{element}/value"), &json!({ "text": text })).await?;
        Ok(())
    }

    /// Presses a key as the keyboard has it: the key's character, or its name such as `Tab`, with Shift held where asked.
    ///
    /// # Errors
    /// When the browser takes no keys, or the name is none of those known here.
    pub async fn press(&self, key: &str) -> Result<()> {
        // W3C WebDriver, "Keyboard Actions": the normalised key values.
        let key = match key {
            "Tab" => "\u{E004}",
            "Enter" => "\u{E007}",
            "Space" => " ",
            one if one.chars().count() == 1 => one,
            other => bail!("no key is called {other:?} here"),
        };
        let strokes = json!([{ "type": "keyDown", "value": key }, { "type": "keyUp", "value": key }]);
        let keys = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": strokes }] });
        self.ask("POST", "actions", &keys).await?;
        Ok(())
    }

    /// Says yes to what the page asks.
    ///
    /// # Errors
    /// When it asks nothing.
    pub async fn say_yes(&self) -> Result<()> {
        self.ask("POST", "alert/accept", &json!({})).await?;
        Ok(())
    }

    /// A picture of the window, as PNG in base64.
    ///
    /// # Errors
    /// When there is none.
    pub async fn picture(&self) -> Result<String> {
        let picture = self.ask("GET", "screenshot", &Value::Null).await?;
        Ok(picture.as_str().context("no picture")?.to_owned())
    }

    /// Processor time that all its processes have used until now, in seconds.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn processor_seconds(&self) -> Result<f64> {
        // Fields of /proc/PID/stat behind the name in brackets: the group is the third, the times the twelfth and thirteenth.
        let mut ticks = 0;
        for entry in std::fs::read_dir("/proc")? {
            let Ok(stat) = std::fs::read_to_string(entry?.path().join("stat")) else { continue };
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = rest.split(' ').collect();
            if fields.get(2).and_then(|group| group.parse::<u32>().ok()) == Some(self.driver.id()) {
                let time =
                    |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
                ticks += time(11) + time(12);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a few minutes of ticks")]
        let seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        Ok(seconds)
    }

    /// Makes the window this large.
    ///
    /// # Errors
    /// When the browser does not.
    pub async fn resize(&self, width: u32, height: u32) -> Result<()> {
        self.ask("POST", "window/rect", &json!({ "width": width, "height": height })).await?;
        Ok(())
    }

    async fn element(&self, script: &str, what: &str) -> Result<String> {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let found = self.run(script).await?;
            if let Some(id) = found[ELEMENT].as_str() {
                return Ok(id.to_owned());
            }
            if tokio::time::Instant::now() >= end {
                bail!(
                    "nothing on the page is called {what:?}; it shows {:?}",
                    self.text().await.unwrap_or_default()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn ask(&self, method: &str, what: &str, body: &Value) -> Result<Value> {
        self.send(method, &format!("/session/{}/{what}", self.session), body).await
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let answer = tokio::time::timeout(DEADLINE, self.exchange(method, path, body));
        let (status, mut answer) = answer.await.with_context(|| format!("no answer to {path}"))??;
        let value = answer["value"].take();
        ensure!(status == 200, "{path}: {}", value["message"].as_str().unwrap_or_default());
        Ok(value)
    }

    async fn exchange(&self, method: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", format!("127.0.0.1:{}", self.port))
            .header("content-type", "application/json")
            .body(Full::new(body))?;
        let answered = async {
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            anyhow::Ok((status, serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?))
        };
        tokio::select! {
            answer = answered => answer,
            Err(error) = connection => Err(error.into()),
        }
    }
}

/// chromedriver says at which port it is; what it says later is read and dropped, so that it never waits for a reader.
fn port_told(mut out: impl BufRead + Send + 'static) -> Result<u16> {
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(out.read_line(&mut line)? > 0, "chromedriver ended at once");
        let Some((_, port)) = line.split_once("started successfully on port ") else { continue };
        let port = port.trim().trim_end_matches('.').parse()?;
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        return Ok(port);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let group = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw);
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.driver.wait();
    }
}
