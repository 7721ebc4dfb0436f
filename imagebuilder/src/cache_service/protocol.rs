//! What client and service say to each other: JSON documents, one a message of a `SOCK_SEQPACKET` socket.
//!
//! ```json
//! {"version": 1, "encoder": "…", "storePath": {"path": "HASH-NAME", "narHash": "sha256:NIX32"},
//!  "settings": {"compression": "zstd", "level": 8, "blockSizeBytes": 131072, "fragmentBlockSizeBytes": 131072}}
//! {"version": 1, "answer": "working"}
//! {"version": 1, "answer": "pack"}
//! {"version": 1, "answer": "refused", "reason": "notValid", "message": "…"}
//! ```
//! A client sends one request at a time. `working` says that the service is still there, `pack` comes with a descriptor,
//! and `pack` and `refused` end the request. The socket keeps messages apart, so there is no half of one to wait for.

use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The version that this program speaks, and the only one.
pub const PROTOCOL_VERSION: u64 = 1;

/// Length of the longest message, in bytes. The longest request that is right has about 700.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Length of the longest name of an encoder, in bytes.
const ENCODER_BYTES_MAX: usize = 128;

/// Length of the longest explanation in an answer, in bytes.
const EXPLANATION_BYTES_MAX: usize = 512;

/// What a client asks for: the pack of one store path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Request {
    version: u64,
    /// What makes the client's packs: see [`super::PackStore::encoder`].
    pub encoder: String,
    /// The store path; it has a NAR hash.
    pub store_path: PlannedPath,
    /// Codec and block sizes.
    pub settings: ImageSettings,
}

/// What the service says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", deny_unknown_fields, rename_all = "camelCase")]
pub enum Answer {
    /// The request is being worked on: ask the socket again.
    Working {
        /// [`PROTOCOL_VERSION`].
        version: u64,
    },
    /// The pack comes with this message.
    Pack {
        /// [`PROTOCOL_VERSION`].
        version: u64,
    },
    /// There will be no pack.
    Refused {
        /// [`PROTOCOL_VERSION`].
        version: u64,
        /// Why, for a program.
        reason: Reason,
        /// Why, for a person.
        message: String,
    },
}

/// Why there is no pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The request is none.
    Malformed,
    /// The client speaks another version of the protocol.
    Version,
    /// The client's packs are made by another encoder.
    Encoder,
    /// Nix does not call the store path valid.
    NotValid,
    /// The store path that Nix knows has another content.
    OtherContent,
    /// The service has as many clients or requests as it takes.
    Busy,
    /// The pack took longer than the service allows.
    TooSlow,
    /// The pack could not be made.
    Failed,
}

/// A message that is not what it should be.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// Longer than any message is.
    #[error("a message has more than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// Not JSON, or not of the form of this message.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Of another version.
    #[error("a message has version {found}, but this program speaks version {PROTOCOL_VERSION} only")]
    Version {
        /// The version, as the JSON has it.
        found: String,
    },
    /// A request for a path without a NAR hash, or with an encoder's name that is none.
    #[error("a request {0}")]
    Request(&'static str),
    /// A pack without exactly one descriptor, or a descriptor without a pack.
    #[error("an answer came with {0} descriptors")]
    Descriptors(usize),
    /// What came as a pack is no file.
    #[error("what the service sent is not a regular file")]
    NotAFile,
}

impl Request {
    /// A request for the pack of a store path; `None` for one without a NAR hash, by which packs are found.
    pub fn new(store_path: PlannedPath, settings: ImageSettings, encoder: String) -> Option<Self> {
        store_path.nar_hash.is_some().then_some(Self { version: PROTOCOL_VERSION, encoder, store_path, settings })
    }

    /// Reads a request.
    ///
    /// # Errors
    /// It is no request of this version.
    pub fn parse(message: &[u8]) -> Result<Self, ProtocolError> {
        check(message)?;
        let request: Self = serde_json::from_slice(message)?;
        let encoder = &request.encoder;
        if encoder.len() > ENCODER_BYTES_MAX || !encoder.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ProtocolError::Request("has a name of an encoder that is none"));
        }
        if request.store_path.nar_hash.is_none() {
            return Err(ProtocolError::Request("has no NAR hash"));
        }
        Ok(request)
    }

    /// The message.
    ///
    /// # Errors
    /// None that is known: every request has a JSON form.
    pub fn message(&self) -> Result<Vec<u8>, ProtocolError> {
        Ok(serde_json::to_vec(self)?)
    }
}

impl Answer {
    /// The request is being worked on.
    pub const WORKING: Self = Self::Working { version: PROTOCOL_VERSION };
    /// The pack comes with this message.
    pub const PACK: Self = Self::Pack { version: PROTOCOL_VERSION };

    /// There will be no pack. A long explanation is cut.
    pub fn refused(reason: Reason, explanation: &str) -> Self {
        let mut end = explanation.len().min(EXPLANATION_BYTES_MAX);
        while !explanation.is_char_boundary(end) {
            end -= 1;
        }
        Self::Refused { version: PROTOCOL_VERSION, reason, message: explanation[..end].to_owned() }
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// It is no answer of this version.
    pub fn parse(message: &[u8]) -> Result<Self, ProtocolError> {
        check(message)?;
        Ok(serde_json::from_slice(message)?)
    }

    /// The message.
    ///
    /// # Errors
    /// None that is known: every answer has a JSON form.
    pub fn message(&self) -> Result<Vec<u8>, ProtocolError> {
        Ok(serde_json::to_vec(self)?)
    }
}

/// Looks at what messages of every version have.
fn check(message: &[u8]) -> Result<(), ProtocolError> {
    #[derive(Deserialize)]
    struct AnyVersion {
        version: serde_json::Value,
    }
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(ProtocolError::TooLong);
    }
    let AnyVersion { version } = serde_json::from_slice(message)?;
    if version.as_u64() == Some(PROTOCOL_VERSION) {
        return Ok(());
    }
    Err(ProtocolError::Version { found: version.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store_path::StorePath;
    use proptest::prelude::*;

    const HASH: &str = "0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv";

    const GOLDEN_REQUEST: &str = r#"{"version":1,"encoder":"zstd8-e1","storePath":{"path":"0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello","narHash":"sha256:01q70w3hf1q70w3hf1q70w3hf1q70w3hf1q70w3hf1q70w3hf1q7"},"settings":{"compression":"zstd","level":8,"blockSizeBytes":131072,"fragmentBlockSizeBytes":131072}}"#;

    fn request() -> Request {
        let path = StorePath::from_base_name(&format!("{HASH}-hello")).unwrap();
        let planned = PlannedPath { path, nar_hash: Some([7; 32]), nar_size_bytes: None };
        Request::new(planned, ImageSettings::default(), "zstd8-e1".to_owned()).unwrap()
    }

    fn refusal(old: &str, new: &str) -> String {
        let text = GOLDEN_REQUEST.replacen(old, new, 1);
        assert_ne!(text, GOLDEN_REQUEST, "{old} is not in the golden request");
        Request::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_form_of_version_1_stays() {
        assert_eq!(String::from_utf8(request().message().unwrap()).unwrap(), GOLDEN_REQUEST);
        assert_eq!(Request::parse(GOLDEN_REQUEST.as_bytes()).unwrap(), request());
        for (answer, text) in [
            (Answer::WORKING, r#"{"answer":"working","version":1}"#),
            (Answer::PACK, r#"{"answer":"pack","version":1}"#),
            (
                Answer::refused(Reason::NotValid, "no"),
                r#"{"answer":"refused","version":1,"reason":"notValid","message":"no"}"#,
            ),
        ] {
            assert_eq!(String::from_utf8(answer.message().unwrap()).unwrap(), text);
            assert_eq!(Answer::parse(text.as_bytes()).unwrap(), answer);
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(refusal("\"version\":1", "\"version\":2").contains("version 2, but this program speaks version 1"));
        assert!(refusal("\"version\":1,", "\"version\":1,\"version\":1,").contains("duplicate field"));
        assert!(refusal("\"encoder\"", "\"output\":\"/x\",\"encoder\"").contains("unknown field `output`"));
        assert!(refusal("zstd8-e1", "zstd8 e1").contains("a name of an encoder that is none"));
        assert!(refusal("zstd8-e1", &"z".repeat(129)).contains("a name of an encoder that is none"));
        assert!(refusal("\"level\":8", "\"level\":99").contains("level 99 is out of range"));
        assert!(refusal("-hello", "-he/llo").contains("its name holds a character other than"));
        assert!(refusal("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello", "../../etc/shadow").contains("is shorter than"));
        assert!(refusal(HASH, &format!("/nix/store/{HASH}")).contains("are not Nix base 32"));
        assert!(
            refusal(",\"narHash\":\"sha256:01q70w3hf1q70w3hf1q70w3hf1q70w3hf1q70w3hf1q70w3hf1q7\"", "")
                .contains("no NAR hash")
        );
        assert!(matches!(Request::parse(&[b' '; MESSAGE_BYTES_MAX + 1]), Err(ProtocolError::TooLong)));
        assert!(Request::parse(b"").is_err());
    }

    #[test]
    fn a_long_explanation_is_cut_between_characters() {
        let Answer::Refused { message, .. } = Answer::refused(Reason::Failed, &"ä".repeat(1000)) else {
            panic!("it is refused");
        };
        assert_eq!(message, "ä".repeat(EXPLANATION_BYTES_MAX / 2));
        let worst = Answer::refused(Reason::Failed, &"\u{1}".repeat(1000));
        assert!(worst.message().unwrap().len() <= MESSAGE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>, cut in 0..GOLDEN_REQUEST.len()) {
            let _ = Request::parse(&bytes);
            let _ = Answer::parse(&bytes);
            prop_assert!(Request::parse(&GOLDEN_REQUEST.as_bytes()[..cut]).is_err());
        }
    }
}
