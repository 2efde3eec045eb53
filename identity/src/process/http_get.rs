//! One GET over a connection that the caller has opened: HTTP/1.1, an answer of bounded size.

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, HeaderValue, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Get<'a> {
    /// Host and port of the URL, as the header `Host` has it.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Who asks.
    pub user_agent: &'a str,
    /// What the asker may show for itself.
    pub authorization: Option<&'a HeaderValue>,
    /// Most bytes of the answer's body.
    pub max_body: usize,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// Where a redirect leads, as the peer wrote it.
    pub location: Option<String>,
    /// The body; empty unless the status is 200, because another one is not used.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum GetError {
    /// The connection ended early, or what came is not HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The body is too large.
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    /// The URL cannot be asked for.
    #[error("not a URL that can be asked for: {0}")]
    Url(String),
}

impl Get<'_> {
    /// Asks, and waits for as long as the caller does.
    ///
    /// # Errors
    /// [`GetError`].
    pub async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Answer, GetError> {
        let mut request = Request::get(self.target)
            .header(HOST, self.authority)
            .header(USER_AGENT, self.user_agent);
        if let Some(shown) = self.authorization {
            request = request.header(AUTHORIZATION, shown);
        }
        let request = request
            .body(String::new())
            .map_err(|error| GetError::Url(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        let max_body = self.max_body;
        let answer = async move { read(sender.send_request(request).await?, max_body).await };
        let driven = async {
            // What was read before the connection ended is still to be returned.
            let _ended = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = answer => answer,
            never = driven => never,
        }
    }
}

async fn read(response: Response<Incoming>, max_body: usize) -> Result<Answer, GetError> {
    let status = response.status();
    let location = response.headers().get(LOCATION);
    let location = location.map(|location| String::from_utf8_lossy(location.as_bytes()).into_owned());
    let body = if status == StatusCode::OK {
        let body = Limited::new(response.into_body(), max_body).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(broken) => GetError::Http(*broken),
            Err(_too_long) => GetError::TooLong(max_body),
        })?;
        body.to_bytes()
    } else {
        Bytes::new()
    };
    Ok(Answer {
        status,
        location,
        body,
    })
}

/// Most bytes of the answer's head.
const MAX_HEAD: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(answer: &'static [u8]) -> (Result<Answer, GetError>, String) {
        let (near, mut far) = tokio::io::duplex(1024);
        let get = Get {
            authority: "a.test:8443",
            target: "/b?x=1",
            user_agent: "tester/1",
            authorization: Some(&HeaderValue::from_static("Bearer t")),
            max_body: 8,
        };
        let peer = async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(far.read_u8().await.unwrap());
            }
            far.write_all(answer).await.unwrap();
            far.shutdown().await.unwrap();
            String::from_utf8(head).unwrap()
        };
        tokio::join!(get.send(near), peer)
    }

    #[tokio::test]
    async fn asks_for_the_target_at_the_host_and_gives_the_body() {
        let (answer, head) = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody").await;
        assert_eq!(&*answer.unwrap().body, b"body");
        assert!(head.starts_with("GET /b?x=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: a.test:8443\r\n"), "{head}");
        assert!(head.contains("user-agent: tester/1\r\n"), "{head}");
        assert!(head.contains("authorization: Bearer t\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_redirect_says_where_to_and_its_body_is_not_read() {
        let (answer, _) = ask(b"HTTP/1.1 302 Found\r\nLocation: /c\r\nContent-Length: 9\r\n\r\n").await;
        let expected = Answer {
            status: StatusCode::FOUND,
            location: Some("/c".to_owned()),
            body: Bytes::new(),
        };
        assert_eq!(answer.unwrap(), expected);
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_and_what_is_not_http_are_refused() {
        let (answer, _) = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789").await;
        assert!(matches!(answer, Err(GetError::TooLong(8))), "{answer:?}");
        let (answer, _) = ask(b"SSH-2.0-OpenSSH_9.2\r\n").await;
        assert!(matches!(answer, Err(GetError::Http(_))), "{answer:?}");
    }
}
