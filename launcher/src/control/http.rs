//! The subset of HTTP/1.1 over a Unix socket that cloud-hypervisor and firecracker use: one request, and a response
//! with or without a `Content-Length`.

use super::connection::Connection;
use super::{ControlError, Controller};
use crate::launch::HttpRequest;
use std::io::{self, BufRead, BufReader, Read, Write};

/// The largest body of a response. No hypervisor sends more.
const MAX_BODY_BYTES: u64 = 16 << 20;
/// The most header lines of a response.
const MAX_HEADER_LINES: u32 = 100;

/// A response with a 2xx status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// The body; empty if there is none.
    pub body: String,
}

pub(super) fn request(controller: &Controller, request: &HttpRequest) -> Result<HttpAnswer, ControlError> {
    let mut connection = BufReader::new(Connection::open(controller)?);
    let sent = connection.get_mut().write_all(text_of(request).as_bytes());
    sent.map_err(|source| controller.no_answer(source))?;
    let answer = read_answer(&mut connection).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => controller.unexpected_response(&source.to_string()),
        _ => controller.no_answer(source),
    })?;
    if (200..300).contains(&answer.status) {
        return Ok(answer);
    }
    let text = format!("{} {}", answer.status, answer.body.trim());
    Err(controller.refused(format!("{} {}", request.method, request.path), &text))
}

fn text_of(request: &HttpRequest) -> String {
    let head =
        format!("{} {} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n", request.method, request.path);
    match &request.body {
        None => format!("{head}\r\n"),
        Some(body) => {
            let body = body.to_string();
            let length = body.len();
            format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        }
    }
}

fn read_answer(connection: &mut impl BufRead) -> io::Result<HttpAnswer> {
    let status_line = read_line(connection)?;
    let broken = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| broken(status_line.clone()))?;
    let mut body_bytes = 0;
    let mut lines = 0;
    loop {
        lines += 1;
        if lines > MAX_HEADER_LINES {
            return Err(broken(format!("more than {MAX_HEADER_LINES} lines of header")));
        }
        let line = read_line(connection)?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { return Err(broken(line)) };
        if name.eq_ignore_ascii_case("content-length") {
            body_bytes = value.trim().parse().map_err(|_| broken(line.clone()))?;
        }
    }
    if body_bytes > MAX_BODY_BYTES {
        return Err(broken(format!("a body of {body_bytes} bytes")));
    }
    let mut body = String::new();
    connection.take(body_bytes).read_to_string(&mut body)?;
    Ok(HttpAnswer { status, body })
}

fn read_line(connection: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if connection.take(8192).read_line(&mut line)? == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
