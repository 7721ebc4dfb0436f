//! The protocol between client and service: each message on a `SOCK_SEQPACKET` socket is a JSON document.
//!
//! ```json
//! {"version": 1, "encoder": "…", "storePath": {"path": "HASH-NAME", "narHash": "sha256:NIX32"},
//!  "settings": {"compression": "zstd", "level": 8, "blockSizeBytes": 131072, "fragmentBlockSizeBytes": 131072}}
//! {"version": 1, "encoder": "…", "storePath": {…}, "settings": {…}, "file": "blockHashes"}
//! {"version": 1, "answer": "working"}
//! {"version": 1, "answer": "pack"}
//! {"version": 1, "answer": "refused", "reason": "notValid", "message": "…"}
//! ```
//! A request without `file` is for the pack of the store path, one with it for the hashes of dm-verity of the pack's
//! blocks. A client sends one request at a time. `working` means that the service is still working on it, and `pack`
//! comes with a descriptor. `pack` and `refused` end the request. The socket preserves message boundaries, so a message
//! is never partial.

use crate::plan::PlannedPath;
use crate::settings::ImageSettings;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The only supported version of the protocol.
pub const PROTOCOL_VERSION: u64 = 1;

/// Maximum length of a message in bytes. The longest valid request has about 700.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// Maximum length of the name of an encoder in bytes.
const MAX_ENCODER_BYTES: usize = 128;

/// Maximum length of the explanation in an answer in bytes.
const MAX_EXPLANATION_BYTES: usize = 512;

/// The file that a client requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum WantedFile {
    /// The pack.
    #[default]
    Pack,
    /// The hashes of dm-verity of the pack's blocks, see [`crate::pack::block_hashes`].
    BlockHashes,
}

impl WantedFile {
    fn is_pack(&self) -> bool {
        *self == Self::Pack
    }
}

/// A request for a file of one store path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Request {
    version: u64,
    /// The encoder of the client's packs, see [`super::PackStore::encoder`].
    pub encoder: String,
    /// The store path, which must have a NAR hash.
    pub store_path: PlannedPath,
    /// Codec and block sizes.
    pub settings: ImageSettings,
    /// The file; a message without it is a request for the pack.
    #[serde(default, skip_serializing_if = "WantedFile::is_pack")]
    pub file: WantedFile,
}

/// An answer of the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", deny_unknown_fields, rename_all = "camelCase")]
pub enum Answer {
    /// The request is in progress; another answer follows.
    Working {
        /// [`PROTOCOL_VERSION`].
        version: u64,
    },
    /// This message contains a descriptor of the pack.
    Pack {
        /// [`PROTOCOL_VERSION`].
        version: u64,
    },
    /// The client gets no pack.
    Refused {
        /// [`PROTOCOL_VERSION`].
        version: u64,
        /// The reason, for programs.
        reason: Reason,
        /// The reason, for people.
        message: String,
    },
}

/// The reason why a client gets no pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The request is invalid.
    Malformed,
    /// The client uses another version of the protocol.
    Version,
    /// The client uses another encoder.
    Encoder,
    /// The store path is not valid according to Nix.
    NotValid,
    /// The store path has another NAR hash according to Nix.
    #[serde(rename = "otherContent")]
    NarHashMismatch,
    /// The service has reached its limit of clients or requests.
    Busy,
    /// The pack took longer than the service allows.
    TooSlow,
    /// The service no longer has the pack whose hashes are requested.
    NoPack,
    /// The pack could not be made.
    Failed,
    /// A reason of a later release. The client makes the pack itself.
    #[serde(other)]
    Unknown,
}

/// An invalid message.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// The message is too long.
    #[error("a message has more than {MAX_MESSAGE_BYTES} bytes")]
    TooLong,
    /// The message is not JSON, or does not have the expected fields.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The message has another version.
    #[error("a message has version {found}, but this program supports only version {PROTOCOL_VERSION}")]
    Version {
        /// The version in the JSON.
        found: String,
    },
    /// A request for a path without a NAR hash, or with an invalid name of an encoder.
    #[error("a request {0}")]
    Request(&'static str),
    /// A pack without exactly one descriptor, or a descriptor without a pack.
    #[error("an answer came with {0} descriptors")]
    Descriptors(usize),
    /// The descriptor of a pack is not a regular file.
    #[error("the service sent a descriptor that is not a regular file")]
    NotAFile,
}

impl Request {
    /// Creates a request for the pack of a store path; `None` if the path has no NAR hash, which identifies packs.
    pub fn new(store_path: PlannedPath, settings: ImageSettings, encoder: String) -> Option<Self> {
        let file = WantedFile::Pack;
        store_path.nar_hash.is_some().then_some(Self { version: PROTOCOL_VERSION, encoder, store_path, settings, file })
    }

    /// Parses a request.
    ///
    /// # Errors
    /// The message is not a valid request of this version.
    pub fn parse(message: &[u8]) -> Result<Self, ProtocolError> {
        check(message)?;
        let request: Self = serde_json::from_slice(message)?;
        let encoder = &request.encoder;
        if encoder.len() > MAX_ENCODER_BYTES || !encoder.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ProtocolError::Request("has an invalid name of an encoder"));
        }
        if request.store_path.nar_hash.is_none() {
            return Err(ProtocolError::Request("has no NAR hash"));
        }
        Ok(request)
    }

    /// Returns the message as bytes.
    ///
    /// # Errors
    /// None are expected, because every request can be written as JSON.
    pub fn message(&self) -> Result<Vec<u8>, ProtocolError> {
        Ok(serde_json::to_vec(self)?)
    }
}

impl Answer {
    /// The answer that the request is in progress.
    pub const WORKING: Self = Self::Working { version: PROTOCOL_VERSION };
    /// The answer that contains a descriptor of the pack.
    pub const PACK: Self = Self::Pack { version: PROTOCOL_VERSION };

    /// Returns the answer that the client gets no pack. A long explanation is truncated.
    pub fn refused(reason: Reason, explanation: &str) -> Self {
        let mut end = explanation.len().min(MAX_EXPLANATION_BYTES);
        while !explanation.is_char_boundary(end) {
            end -= 1;
        }
        Self::Refused { version: PROTOCOL_VERSION, reason, message: explanation[..end].to_owned() }
    }

    /// Parses an answer.
    ///
    /// # Errors
    /// The message is not a valid answer of this version.
    pub fn parse(message: &[u8]) -> Result<Self, ProtocolError> {
        check(message)?;
        Ok(serde_json::from_slice(message)?)
    }

    /// Returns the message as bytes.
    ///
    /// # Errors
    /// None are expected, because every answer can be written as JSON.
    pub fn message(&self) -> Result<Vec<u8>, ProtocolError> {
        Ok(serde_json::to_vec(self)?)
    }
}

/// Checks the length and the version of a message.
fn check(message: &[u8]) -> Result<(), ProtocolError> {
    #[derive(Deserialize)]
    struct AnyVersion {
        version: serde_json::Value,
    }
    if message.len() > MAX_MESSAGE_BYTES {
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
    fn the_format_of_version_1_is_unchanged() {
        assert_eq!(String::from_utf8(request().message().unwrap()).unwrap(), GOLDEN_REQUEST);
        assert_eq!(Request::parse(GOLDEN_REQUEST.as_bytes()).unwrap(), request());
        let hashes = Request { file: WantedFile::BlockHashes, ..request() };
        let text = GOLDEN_REQUEST.replace(r#"131072}}"#, r#"131072},"file":"blockHashes"}"#);
        assert_eq!(String::from_utf8(hashes.message().unwrap()).unwrap(), text);
        assert_eq!(Request::parse(text.as_bytes()).unwrap(), hashes);
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
    fn a_reason_that_was_renamed_in_the_code_keeps_its_name_in_messages() {
        for (reason, name) in [
            (Reason::Malformed, "malformed"),
            (Reason::Version, "version"),
            (Reason::Encoder, "encoder"),
            (Reason::NotValid, "notValid"),
            (Reason::NarHashMismatch, "otherContent"),
            (Reason::Busy, "busy"),
            (Reason::TooSlow, "tooSlow"),
            (Reason::NoPack, "noPack"),
            (Reason::Failed, "failed"),
        ] {
            let text = format!(r#"{{"answer":"refused","version":1,"reason":"{name}","message":"no"}}"#);
            let answer = Answer::refused(reason, "no");
            assert_eq!(String::from_utf8(answer.message().unwrap()).unwrap(), text);
            assert_eq!(Answer::parse(text.as_bytes()).unwrap(), answer);
        }
    }

    #[test]
    fn invalid_requests_are_refused() {
        assert!(
            refusal("\"version\":1", "\"version\":2").contains("version 2, but this program supports only version 1")
        );
        assert!(refusal("\"version\":1,", "\"version\":1,\"version\":1,").contains("duplicate field"));
        assert!(refusal("\"encoder\"", "\"output\":\"/x\",\"encoder\"").contains("unknown field `output`"));
        assert!(refusal("zstd8-e1", "zstd8 e1").contains("an invalid name of an encoder"));
        assert!(refusal("zstd8-e1", &"z".repeat(129)).contains("an invalid name of an encoder"));
        assert!(refusal("\"level\":8", "\"level\":99").contains("level 99 is out of range"));
        assert!(refusal("-hello", "-he/llo").contains("its name contains a character other than"));
        assert!(refusal("0c0wqvhs4gn6a6ps1q4a9qd3h2ra2bnv-hello", "../../etc/shadow").contains("is shorter than"));
        assert!(refusal(HASH, &format!("/nix/store/{HASH}")).contains("are not Nix base 32"));
        assert!(
            refusal(",\"narHash\":\"sha256:01q70w3hf1q70w3hf1q70w3hf1q70w3hf1q70w3hf1q70w3hf1q7\"", "")
                .contains("no NAR hash")
        );
        assert!(matches!(Request::parse(&[b' '; MAX_MESSAGE_BYTES + 1]), Err(ProtocolError::TooLong)));
        assert!(Request::parse(b"").is_err());
    }

    #[test]
    fn a_long_explanation_is_truncated_between_characters() {
        let Answer::Refused { message, .. } = Answer::refused(Reason::Failed, &"ä".repeat(1000)) else {
            panic!("it is refused");
        };
        assert_eq!(message, "ä".repeat(MAX_EXPLANATION_BYTES / 2));
        let worst = Answer::refused(Reason::Failed, &"\u{1}".repeat(1000));
        assert!(worst.message().unwrap().len() <= MAX_MESSAGE_BYTES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted_or_refused_without_a_panic(bytes: Vec<u8>, cut in 0..GOLDEN_REQUEST.len()) {
            let _ = Request::parse(&bytes);
            let _ = Answer::parse(&bytes);
            prop_assert!(Request::parse(&GOLDEN_REQUEST.as_bytes()[..cut]).is_err());
        }
    }
}
