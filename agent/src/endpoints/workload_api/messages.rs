//! The streams of the API: the whole state at first, and again whenever it has changed for this caller.

use std::fmt;

use futures_util::stream::{self, Stream};
use tonic::{Request, Status};

use super::encoding;
use crate::endpoints::codec::Framed;
use crate::endpoints::session::{Access, Session, Sessions, View};

/// What a stream sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::endpoints) enum Content {
    X509Svids,
    X509Bundles,
    JwtBundles,
    WitBundles,
}

/// A stream of one caller.
pub(in crate::endpoints) struct Messages {
    pub(super) session: Session,
    content: Content,
    /// What was sent last.
    sent: Option<Framed>,
}

/// Without what was sent, which may hold private keys.
impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("session", &self.session)
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

impl Messages {
    /// Finds out who calls.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub(super) async fn open<M>(
        sessions: &Sessions,
        request: &Request<M>,
        content: Content,
    ) -> Result<Self, Status> {
        let session = Session::open(sessions, request, content.access()).await?;
        Ok(Self::of(session, content))
    }

    /// A stream of a session that was opened for [`Content::access`].
    pub(in crate::endpoints) fn of(session: Session, content: Content) -> Self {
        Self {
            session,
            content,
            sent: None,
        }
    }

    /// The next message: when the content for this caller is another than what was sent.
    ///
    /// # Errors
    /// As [`Session::view`]; the stream ends with it. A stream never ends without an error.
    pub(in crate::endpoints) async fn next(&mut self) -> Result<Framed, Status> {
        loop {
            let view = self.session.view().await?;
            let content = self.content.of(&view);
            let is_new = self.sent.as_ref() != Some(&content);
            if is_new && (self.sent.is_none() || self.session.attest_again().await?) {
                self.session.mark_answered();
                self.sent = Some(content.clone());
                return Ok(content);
            }
            drop((view, content));
            if !is_new {
                self.session.changed().await?;
            }
        }
    }

    /// The stream, beginning with a message that is at hand.
    pub(in crate::endpoints) fn into_stream(
        self,
        first: Framed,
    ) -> impl Stream<Item = Result<Framed, Status>> + Send + 'static {
        // In a place of its own: else the stream would have room for it wherever it is moved to.
        let messages = Box::new((self, Some(first)));
        stream::unfold(Some(messages), |messages| async move {
            let mut messages = messages?;
            let next = match messages.1.take() {
                Some(first) => Ok(first),
                None => messages.0.next().await,
            };
            Some(match next {
                Ok(content) => (Ok(content), Some(messages)),
                Err(status) => (Err(status), None),
            })
        })
    }
}

impl Content {
    /// What a session is opened for.
    pub(in crate::endpoints) fn access(self) -> Access {
        match self {
            Self::X509Svids => Access::X509Svids,
            Self::X509Bundles => Access::X509Bundles,
            Self::JwtBundles => Access::JwtBundles,
            Self::WitBundles => Access::WitBundles,
        }
    }

    fn of(self, view: &View) -> Framed {
        match self {
            Self::X509Svids => encoding::x509_svids(view),
            Self::X509Bundles => encoding::x509_bundles(view),
            Self::JwtBundles => encoding::jwt_bundles(view),
            Self::WitBundles => encoding::wit_bundles(view),
        }
    }
}
