//! Messages in a stream of bytes: a little-endian `u32` length, and that many bytes of JSON.

use crate::{Answer, Call, Command, Refusal, RefusalKind};
use serde::Serialize;
use serde_json::Value;
use std::io::{self, Read, Write};

/// Longest message in bytes, without its length.
pub const MAX_MESSAGE: usize = 1 << 20;

const LENGTH: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// What follows cannot be found any more: the stream is of no use.
    #[error("a message of {0} bytes: at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    #[error("the connection ended inside a message, after {got} bytes")]
    Truncated { got: usize },
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Takes bytes as they come and gives whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes before this one were given out already.
    start: usize,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, without its length; `None`: more bytes are needed.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, CodecError> {
        let rest = &self.bytes[self.start..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_MESSAGE {
            return Err(CodecError::TooLong(length));
        }
        let message = rest.get(..length).map(<[u8]>::to_vec);
        if message.is_some() {
            self.start += LENGTH + length;
        }
        Ok(message)
    }

    /// Bytes of a message that has begun and not ended.
    pub fn pending(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Reads until a message is whole. `None`: the stream ended between two messages. A read that
    /// timed out is [`CodecError::Io`], and nothing that came before it is lost.
    pub fn read(&mut self, from: &mut impl Read) -> Result<Option<Vec<u8>>, CodecError> {
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match from.read(&mut piece) {
                Ok(0) if self.pending() == 0 => return Ok(None),
                Ok(0) => return Err(CodecError::Truncated { got: self.pending() }),
                Ok(n) => self.push(&piece[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The bytes of a message, its length included.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; LENGTH];
    serde_json::to_writer(&mut bytes, message).map_err(io::Error::from)?;
    let length = bytes.len() - LENGTH;
    if length > MAX_MESSAGE {
        return Err(CodecError::TooLong(length));
    }
    bytes[..LENGTH].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

/// Writes one message in one piece.
pub fn write(to: &mut impl Write, message: &impl Serialize) -> Result<(), CodecError> {
    to.write_all(&encode(message)?)?;
    Ok(to.flush()?)
}

/// Reads a call. What is wrong with it is an answer that can be sent, with the call's number where
/// that could be read.
pub fn decode_call(message: &[u8]) -> Result<Call, Box<Answer>> {
    let refuse = |id, what: String| {
        let error = Refusal { kind: RefusalKind::Malformed, message: what };
        Box::new(Answer { id, ok: None, error: Some(error) })
    };
    let value: Value = serde_json::from_slice(message)
        .map_err(|e| refuse(None, format!("the message is no JSON: {e}")))?;
    let Value::Object(mut fields) = value else {
        return Err(refuse(None, "the message is no JSON object".to_owned()));
    };
    let id = match fields.remove("id") {
        None => return Err(refuse(None, "the message has no `id`".to_owned())),
        Some(id) => id.as_u64().ok_or_else(|| {
            refuse(None, format!("`id` is a number from 0 to 2^64 - 1, not {id}"))
        })?,
    };
    match fields.get("cmd") {
        Some(Value::String(_)) => {}
        None => return Err(refuse(Some(id), "the message has no `cmd`".to_owned())),
        Some(other) => {
            return Err(refuse(Some(id), format!("`cmd` is a command's name, not {other}")));
        }
    }
    let command: Command = serde_json::from_value(Value::Object(fields))
        .map_err(|e| refuse(Some(id), format!("the command is not understood: {e}")))?;
    Ok(Call { id, command })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Match, OpKind, Range, StallWhen, Trigger};
    use serde_json::json;

    fn every_command() -> Vec<Command> {
        let which = Match {
            op: Some(OpKind::Write),
            range: Some(Range { offset: 4096, len: 512 }),
            nth: Some(3),
            eligible: true,
        };
        vec![
            Command::Status {},
            Command::Limits {},
            Command::Mark { name: "here".to_owned() },
            Command::Stall { which: which.clone(), when: StallWhen::BeforeCompletion },
            Command::Stall { which: Match::default(), when: StallWhen::BeforeIo },
            Command::Release { token: 7 },
            Command::Fault { spec: "eio,nth=2".to_owned() },
            Command::Crash { at: Trigger::Now, state: None, seed: None, profile: None },
            Command::Crash {
                at: Trigger::Submit(which.clone()),
                state: None,
                seed: Some(u64::MAX),
                profile: Some("lb512".to_owned()),
            },
            Command::Crash {
                at: Trigger::Complete(which),
                state: Some("lb512/p9:all".to_owned()),
                seed: None,
                profile: None,
            },
            Command::Crash {
                at: Trigger::Mark("m".to_owned()),
                state: None,
                seed: None,
                profile: None,
            },
            Command::UseState { name: "live".to_owned() },
        ]
    }

    fn value(command: &Command) -> serde_json::Map<String, Value> {
        let Value::Object(fields) =
            serde_json::to_value(Call { id: 5, command: command.clone() }).unwrap()
        else {
            panic!("a call is an object");
        };
        fields
    }

    fn decode(value: &Value) -> Result<Call, Box<Answer>> {
        decode_call(value.to_string().as_bytes())
    }

    #[test]
    fn every_command_comes_back() {
        for command in every_command() {
            let call = decode(&Value::Object(value(&command))).unwrap();
            assert_eq!(call, Call { id: 5, command });
        }
    }

    #[test]
    fn an_unknown_field_of_any_command_is_an_error() {
        for command in every_command() {
            let mut fields = value(&command);
            fields.insert("surplus".to_owned(), json!(1));
            let answer = decode(&Value::Object(fields)).unwrap_err();
            assert_eq!(answer.id, Some(5));
            let error = answer.error.unwrap();
            assert_eq!(error.kind, RefusalKind::Malformed);
            assert!(error.message.contains("surplus"), "{command:?}: {error}");
        }
    }

    #[test]
    fn an_unknown_field_inside_a_command_is_an_error() {
        for wrong in [
            json!({"id": 1, "cmd": "stall", "range": {"offset": 0, "len": 512, "end": 1}}),
            json!({"id": 1, "cmd": "crash", "at": {"submit": {"opp": "write"}}}),
            json!({"id": 1, "cmd": "crash", "at": {"then": {}}}),
            json!({"id": 1, "cmd": "crash", "at": {"submit": {}, "complete": {}}}),
        ] {
            let error = decode(&wrong).unwrap_err().error.unwrap();
            assert_eq!(error.kind, RefusalKind::Malformed, "{wrong}");
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let call = decode(&json!({"id": 0, "cmd": "stall"})).unwrap();
        let stall = Command::Stall { which: Match::default(), when: StallWhen::BeforeIo };
        assert_eq!(call.command, stall);
        let call = decode(&json!({"id": 0, "cmd": "crash"})).unwrap();
        let crash = Command::Crash { at: Trigger::Now, state: None, seed: None, profile: None };
        assert_eq!(call.command, crash);
    }

    #[test]
    fn values_of_a_wrong_type_or_out_of_range_are_errors() {
        for (wrong, says) in [
            (json!({"cmd": "status"}), "no `id`"),
            (json!({"id": -1, "cmd": "status"}), "`id`"),
            (json!({"id": "1", "cmd": "status"}), "`id`"),
            (json!({"id": 1}), "no `cmd`"),
            (json!({"id": 1, "cmd": 5}), "cmd"),
            (json!({"id": 1, "cmd": "explode"}), "explode"),
            (json!({"id": 1, "cmd": "mark"}), "name"),
            (json!({"id": 1, "cmd": "mark", "name": 5}), "string"),
            (json!({"id": 1, "cmd": "mark", "name": ""}), "bytes"),
            (json!({"id": 1, "cmd": "mark", "name": "x".repeat(4001)}), "4001"),
            (json!({"id": 1, "cmd": "crash", "at": {"mark": ""}}), "bytes"),
            (json!({"id": 1, "cmd": "release", "token": 1.5}), "1.5"),
            (json!({"id": 1, "cmd": "stall", "nth": 0}), "from 1"),
            (json!({"id": 1, "cmd": "stall", "op": "scribble"}), "scribble"),
            (json!({"id": 1, "cmd": "stall", "op": "read", "eligible": true}), "writes"),
            (json!({"id": 1, "cmd": "stall", "range": {"offset": 0, "len": 0}}), "nothing"),
            (json!({"id": 1, "cmd": "stall", "range": {"offset": u64::MAX, "len": 2}}), "2^64"),
            (
                json!({"id": 1, "cmd": "stall", "op": "flush", "range": {"offset": 0, "len": 1}}),
                "flush",
            ),
            (json!([1, 2]), "object"),
        ] {
            let error = decode(&wrong).unwrap_err().error.unwrap();
            assert_eq!(error.kind, RefusalKind::Malformed);
            assert!(error.message.contains(says), "{wrong}: {error}");
        }
        assert!(decode_call(b"\xff\xfe").unwrap_err().error.unwrap().message.contains("JSON"));
        assert!(decode_call(b"{").unwrap_err().error.unwrap().message.contains("JSON"));
        assert!(decode_call(b"").unwrap_err().error.unwrap().message.contains("JSON"));
    }

    #[test]
    fn messages_come_out_whole_however_they_arrive() {
        let mut stream = Vec::new();
        for command in every_command() {
            write(&mut stream, &Call { id: 1, command }).unwrap();
        }
        for step in [1, 3, 7, 64, stream.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                decoder.push(piece);
                while let Some(message) = decoder.take().unwrap() {
                    found.push(decode_call(&message).unwrap().command);
                }
            }
            assert_eq!(found, every_command());
            assert_eq!(decoder.pending(), 0);
        }
    }

    #[test]
    fn a_stream_may_end_between_messages_only() {
        let whole = encode(&json!({"id": 1})).unwrap();
        let mut decoder = Decoder::default();
        let mut from = &whole[..];
        assert_eq!(decoder.read(&mut from).unwrap().unwrap(), &whole[4..]);
        assert!(decoder.read(&mut from).unwrap().is_none());
        for end in 1..whole.len() {
            let error = Decoder::default().read(&mut &whole[..end]).unwrap_err();
            assert!(matches!(error, CodecError::Truncated { got } if got == end), "{error}");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.take(), Err(CodecError::TooLong(n)) if n == u32::MAX as usize));
        let long = "x".repeat(MAX_MESSAGE);
        assert!(matches!(encode(&long), Err(CodecError::TooLong(n)) if n == MAX_MESSAGE + 2));
    }
}
