//! Who is not let in: requests as other programs and other pages send them.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use mesh_control::LinkRequest;
use qmt_tests::fleet::{Fleet, Setup, built};
use tokio::net::TcpStream;

struct Answer {
    status: u16,
    headers: hyper::HeaderMap,
    body: String,
}

/// One request with these headers and no others.
async fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response =
        sender.send_request(request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    connection.abort();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// So many requests to a gateway, one after the other on one connection.
pub(crate) async fn asked_often(gateway: std::net::SocketAddr, count: usize) {
    let stream = TcpStream::connect(gateway).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..count {
        let request = Request::get("/v1/models").header("host", gateway.to_string());
        sender.ready().await.unwrap();
        let answer = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    connection.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_page_in_a_browser_that_was_let_in_is_answered() {
    let program = match built("qmt-node") {
        Ok(program) => program,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let configure = |_: usize| "console.port = 0\ninference.lend = false\n".to_owned();
    let fleet =
        Fleet::start(Setup { configure: &configure, ..Setup::on_loopback(&program, 1) }).await.unwrap();
    let client = fleet.node(0).client();
    let link = client.console_link(&LinkRequest::default()).await.unwrap();
    let (base, path) = link.url.split_at(link.url.find("/open").unwrap());
    let host = base.trim_start_matches("http://");
    let port: u16 = host.rsplit(':').next().unwrap().parse().unwrap();

    // Nothing without a cookie but the page itself, which holds no secret, and numbers without names.
    for path in [
        "/api/status",
        "/api/events",
        "/api/invites",
        "/api/sessions",
        "/v1/models",
        "/console/access",
        "/api/none",
    ] {
        assert_eq!(ask(port, "GET", path, &[("host", host)], "").await.status, 401, "{path}");
    }
    for path in ["/", "/app.js", "/views/chat.js", "/metrics"] {
        assert_eq!(ask(port, "GET", path, &[("host", host)], "").await.status, 200, "{path}");
    }

    // The link works once; a wrong one never.
    assert_eq!(ask(port, "GET", "/open?key=AAAA", &[("host", host)], "").await.status, 410);
    let opened = ask(
        port,
        "GET",
        path,
        &[("host", host), ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")],
        "",
    )
    .await;
    assert_eq!(opened.status, 303);
    let cookie = opened.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let stolen = ask(port, "GET", path, &[("host", host)], "").await;
    assert_eq!(stolen.status, 410);
    assert!(stolen.body.contains("qmt-cli console") && !stolen.headers.contains_key("set-cookie"));

    let with = |more: &[(&'static str, &'static str)]| {
        let mut headers = vec![("host", host.to_owned()), ("cookie", cookie.to_owned())];
        for (name, value) in more {
            headers.retain(|(known, _)| known != name);
            headers.push((name, (*value).to_owned()));
        }
        headers
    };
    let sent = async |method: &str, path: &str, headers: Vec<(&str, String)>, body: &str| {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ask(port, method, path, &headers, body).await
    };
    let good = sent("GET", "/api/status", with(&[]), "").await;
    assert_eq!(good.status, 200);
    let policy = good.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!good.headers.contains_key("access-control-allow-origin"));

    // A page that bound its own name to this address, and pages of other sites, though the browser sends the cookie.
    for foreign in ["evil.example", "evil.example:3131", "127.0.0.1"] {
        let headers = vec![("host", foreign.to_owned()), ("cookie", cookie.to_owned())];
        assert_eq!(sent("GET", "/api/status", headers, "").await.status, 403, "{foreign}");
    }
    for origin in ["http://evil.example", "null"] {
        for method in ["GET", "POST", "OPTIONS"] {
            let headers = with(&[("origin", origin), ("content-type", "application/json")]);
            assert_eq!(sent(method, "/api/invites", headers, "{}").await.status, 403, "{method} {origin}");
        }
    }
    let embedded = with(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]);
    assert_eq!(sent("GET", "/api/status", embedded, "").await.status, 403);

    // A change names its origin and a type that no form can send.
    assert_eq!(
        sent("POST", "/api/invites", with(&[("content-type", "application/json")]), "{}").await.status,
        403
    );
    let own = format!("http://{host}");
    let mut form = with(&[("content-type", "text/plain")]);
    form.push(("origin", own.clone()));
    assert_eq!(sent("POST", "/api/invites", form, "{}").await.status, 400);
    let mut post = with(&[("content-type", "application/json")]);
    post.push(("origin", own));
    assert_eq!(sent("POST", "/api/invites", post, "{}").await.status, 200);

    // Signed out everywhere, at once.
    client.close_console().await.unwrap();
    assert_eq!(sent("GET", "/api/status", with(&[]), "").await.status, 401);
}
