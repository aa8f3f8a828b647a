//! Answers every HTTP request with a greeting.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    // The request ends with an empty line.
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let body = "hello from Rust\n";
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
        body.len(),
        body
    )
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:8080")?;
    println!("hello listens on port 8080");
    for stream in listener.incoming() {
        if let Err(error) = stream.and_then(answer) {
            eprintln!("hello: {}", error);
        }
    }
    Ok(())
}
