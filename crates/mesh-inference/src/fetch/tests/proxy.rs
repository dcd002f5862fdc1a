//! Downloads where the network lets nothing out but what goes over a proxy.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::server::{Reply, Server, file};
use super::*;
use crate::backend::Secret;

/// A name that nobody can resolve: only a proxy leads there.
const URL: &str = "http://models.invalid:8080/m.gguf";

fn over(folder: &Path, proxies: Proxies) -> Fetch {
    let mut config = config(folder);
    config.proxies = proxies;
    Fetch::new(config, None).unwrap()
}

fn secret(proxy: impl Into<String>) -> Option<Secret> {
    Some(Secret::new(proxy))
}

#[tokio::test]
async fn a_file_comes_over_a_proxy_that_wants_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let body = model(3 << 20);
    let given = body.clone();
    let proxy = Server::start(move |seen, number| match number {
        0 => Reply::status(302).with("location", "/elsewhere.gguf"),
        _ => file(seen, &given, "\"a\""),
    })
    .await;
    let named = secret(format!("http://me:p%40ss@{}", proxy.addr));
    let fetch = over(folder.path(), Proxies { http: named, ..Proxies::default() });
    done(&fetch.pull(URL).unwrap()).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    let seen = proxy.seen();
    let paths: Vec<&str> = seen.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(paths[..2], [URL, "http://models.invalid:8080/elsewhere.gguf"]);
    assert!(paths.iter().all(|path| path.starts_with("http://models.invalid:8080/")), "{paths:?}");
    for seen in &seen {
        assert_eq!(seen.header("host"), Some("models.invalid:8080"));
        assert_eq!(seen.header("proxy-authorization"), Some("Basic bWU6cEBzcw=="));
    }
    fetch.shutdown().await;
}

#[tokio::test]
async fn an_encrypted_server_is_reached_through_a_tunnel_of_the_proxy() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let first = Arc::new(tokio::sync::Mutex::new(None));
    let seen = first.clone();
    let proxy = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(tcp.read_u8().await.unwrap());
            }
            tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let hello = tcp.read_u8().await.unwrap();
            seen.lock().await.get_or_insert((String::from_utf8(head).unwrap(), hello));
        }
    });
    let all = secret(format!("me:word@{at}"));
    let fetch = over(folder.path(), Proxies { all, ..Proxies::default() });
    let error = done(&fetch.pull("https://models.invalid/m.gguf").unwrap()).await.unwrap_err();
    let (head, hello) = first.lock().await.clone().unwrap();
    assert!(head.starts_with("CONNECT models.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains("proxy-authorization: basic bwu6d29yza=="), "{head}");
    assert_eq!(hello, 0x16, "a TLS handshake");
    assert!(!error.to_string().contains("word"), "{error}");
    proxy.abort();
    fetch.shutdown().await;
}

#[tokio::test]
async fn a_socks_proxy_is_asked_for_the_name() {
    let folder = tempfile::tempdir().unwrap();
    let body = model(1 << 20);
    let given = body.clone();
    let server = Server::start(move |seen, _| file(seen, &given, "\"a\"")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let behind = server.addr;
    let proxy = tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            // RFC 1928: version, methods; then version, CONNECT, 0, a name of so many bytes, port.
            let mut hello = [0; 3];
            tcp.read_exact(&mut hello).await.unwrap();
            assert_eq!(hello, [5, 1, 0]);
            tcp.write_all(&[5, 0]).await.unwrap();
            let mut request = [0; 5 + 14 + 2];
            tcp.read_exact(&mut request).await.unwrap();
            assert_eq!(request[..5], [5, 1, 0, 3, 14]);
            assert_eq!(&request[5..19], b"models.invalid");
            tcp.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0]).await.unwrap();
            let mut onward = tokio::net::TcpStream::connect(behind).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut tcp, &mut onward).await; // either may close first
        }
    });
    let fetch = over(folder.path(), Proxies { all: secret(format!("socks5h://{at}")), ..Proxies::default() });
    done(&fetch.pull(URL).unwrap()).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("m.gguf")).unwrap(), body);
    assert_eq!(server.seen()[0].path, "/m.gguf");
    fetch.shutdown().await;
    assert!(!proxy.is_finished(), "it was asked for nothing else");
    proxy.abort();
}

#[tokio::test]
async fn this_machine_is_asked_straight_and_a_proxy_that_is_away_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let body = model(1 << 20);
    let given = body.clone();
    let server = Server::start(move |seen, _| file(seen, &given, "\"a\"")).await;
    // Nobody listens there.
    let proxies = Proxies { http: secret("http://127.0.0.1:1"), ..Proxies::default() };
    let fetch = over(folder.path(), proxies);
    done(&fetch.pull(&server.url("/m.gguf")).unwrap()).await.unwrap();
    assert_eq!(server.seen()[0].path, "/m.gguf");
    let named = done(&fetch.pull(URL).unwrap()).await.unwrap_err().to_string();
    assert!(named.contains("over the proxy 127.0.0.1:1"), "{named}");
    fetch.shutdown().await;
}

#[tokio::test]
async fn a_proxy_of_another_kind_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let fetch = over(folder.path(), Proxies { all: secret("https://127.0.0.1:1"), ..Proxies::default() });
    let error = done(&fetch.pull(URL).unwrap()).await.unwrap_err().to_string();
    assert!(
        error.contains("over the proxy 127.0.0.1:1") && error.contains("http:// or socks5://"),
        "{error}"
    );
    fetch.shutdown().await;
}
