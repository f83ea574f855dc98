//! Who is let in: the listener, as strangers and broken nodes meet it.

use axum::{
    body::Body,
    http::{Request, Version, header},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use memcube::{actors::cluster::Transport, schemas::limits::PEER_FRAME_BYTES_MAX};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Cluster, SECRET, network::End};
use crate::support::PATIENCE;

fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

/// A request that is in order, for a row to spoil.
fn frame(end: &End) -> Request<Body> {
    let uri = format!("http://{}/v1/frames", end.transport.local_address());
    Request::post(uri)
        .header(header::AUTHORIZATION, format!("Bearer {SECRET}"))
        .header("memcube-from", "b")
        .header("memcube-address", "127.0.0.1:1")
        .header("memcube-to", "a")
        .body(Body::from("a frame"))
        .expect("a request")
}

fn set(request: &mut Request<Body>, name: &'static str, value: &str) {
    request.headers_mut().insert(name, value.parse().expect("a header"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_frames_that_are_in_order_are_taken() {
    type Row = (&'static str, fn(&mut Request<Body>), u16);
    let table: [Row; 12] = [
        ("in order", |_| {}, 202),
        ("no secret", |r| drop(r.headers_mut().remove("authorization")), 401),
        ("another secret", |r| set(r, "authorization", "Bearer 0123456789abcdef"), 401),
        ("another scheme", |r| set(r, "authorization", &format!("Basic {SECRET}")), 401),
        ("for another node", |r| set(r, "memcube-to", "c"), 421),
        ("for nobody", |r| drop(r.headers_mut().remove("memcube-to")), 400),
        ("from nobody", |r| drop(r.headers_mut().remove("memcube-from")), 400),
        ("from a name that is none", |r| set(r, "memcube-from", "%00"), 400),
        (
            "too large",
            |r| {
                set(r, "content-length", &(PEER_FRAME_BYTES_MAX + 1).to_string());
                let never = futures_util::stream::pending::<std::io::Result<&str>>();
                *r.body_mut() = Body::from_stream(never);
            },
            413,
        ),
        (
            "of unknown length",
            |r| {
                let chunks = futures_util::stream::iter([Ok::<_, std::io::Error>("a frame")]);
                *r.body_mut() = Body::from_stream(chunks);
            },
            400,
        ),
        ("elsewhere", |r| *r.uri_mut() = format!("{}/x", r.uri()).parse().expect("valid"), 404),
        ("not sent", |r| *r.method_mut() = axum::http::Method::GET, 405),
    ];
    let end = End::plain("a").await;
    let client = client();
    let mut taken = 0;
    for (row, spoil, status) in table {
        let mut request = frame(&end);
        spoil(&mut request);
        let answer = client.request(request).await.unwrap_or_else(|error| panic!("{row}: {error}"));
        assert_eq!(answer.status(), status, "{row}");
        taken += usize::from(status == 202);
        assert_eq!(end.arrivals.count(), taken, "{row}");
    }
    assert!(end.arrivals.has(b"a frame"));
}

/// Bytes that are no HTTP/2 end the connection, silence does as well after a while, and both leave
/// the listener well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_leave_and_do_no_harm() {
    let end = End::plain("a").await;
    let address = end.transport.local_address();
    let mut streams = Vec::new();
    for said in [
        &b""[..],
        b"\x00\x01\x02\x03\xff\xfe garbage",
        b"POST /v1/frames HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(said).await.expect("said");
        streams.push(stream);
    }
    let mut answers = tokio::task::JoinSet::new();
    for mut stream in streams {
        answers.spawn(async move {
            let mut answer = Vec::new();
            // Closed in order or cut off: what counts is that it ends.
            let _ = stream.read_to_end(&mut answer).await;
        });
    }
    tokio::time::timeout(PATIENCE, answers.join_all()).await.expect("all are shown out");
    assert_eq!(end.arrivals.count(), 0);
    let answer = client().request(frame(&end)).await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.version()), (202, Version::HTTP_2));
}

/// Whoever has the secret and sends nonsense is told nothing, and the node goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_survives_frames_that_are_none() {
    let cluster = Cluster::of(2).await;
    let address = cluster.nodes[0].transport.address();
    for body in [vec![], vec![0; 16], vec![0xff; 4_096], b"MCUB not rkyv at all".to_vec()] {
        let mut request = Request::post(format!("http://{address}/v1/frames"))
            .body(Body::from(body))
            .expect("a request");
        set(&mut request, "authorization", &format!("Bearer {SECRET}"));
        set(&mut request, "memcube-from", "n1");
        set(&mut request, "memcube-to", "n0");
        assert_eq!(client().request(request).await.expect("an answer").status(), 202);
    }
    cluster.nodes[0].client.cube("c").await;
    cluster.nodes[1].client.fact("c", "all is well").await;
    assert_eq!(cluster.nodes[0].client.texts("c").await, ["all is well"]);
    cluster.stop().await;
}
