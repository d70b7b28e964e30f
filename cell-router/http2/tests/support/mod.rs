//! Both ends of a connection as small programs: a server that sends back what it gets, and a client that asks for it.

#![allow(dead_code, reason = "each test uses what it needs")]

use std::collections::{HashMap, VecDeque};

use titan_http2::hpack::{Block, token};
use titan_http2::{Code, Connection, Event, Limits, Role, StreamKey};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Names and values.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

pub fn fields(block: &Block) -> Fields {
    let pairs = block.fields().iter();
    pairs
        .map(|field| (block.name(field).to_vec(), block.value(field).to_vec()))
        .collect()
}

fn regular(fields: &Fields) -> Fields {
    let is_regular = |(name, _): &&(Vec<u8>, Vec<u8>)| !name.starts_with(b":");
    fields.iter().filter(is_regular).cloned().collect()
}

fn pair(name: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    (name.into(), value.into())
}

/// What waits to be sent on a stream.
#[derive(Debug, Default)]
struct Body {
    waiting: Vec<u8>,
    end: bool,
    trailers: Option<Fields>,
}

/// What came in on a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Got {
    pub head: Fields,
    pub body: Vec<u8>,
    pub trailers: Option<Fields>,
    pub end: bool,
    pub reset: Option<Code>,
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Ask {
    pub path: String,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub trailers: Option<Fields>,
}

/// One end of a connection. A server echoes: fields, body and trailers. A client asks for what is in `asks`.
#[derive(Debug)]
pub struct End {
    pub connection: Connection,
    block: Block,
    carry: Vec<u8>,
    bodies: HashMap<StreamKey, Body>,
    pub asks: VecDeque<Ask>,
    /// The place of the request of each stream.
    places: HashMap<StreamKey, usize>,
    asked: usize,
    pub got: Vec<Got>,
    /// All events, with what they were about.
    pub log: Vec<String>,
    pub pongs: usize,
    /// How many bytes were read.
    pub read: usize,
}

impl End {
    pub fn new(role: Role, limits: Limits) -> Self {
        End {
            connection: Connection::new(role, limits),
            block: Block::default(),
            carry: Vec::new(),
            bodies: HashMap::new(),
            asks: VecDeque::new(),
            places: HashMap::new(),
            asked: 0,
            got: Vec::new(),
            log: Vec::new(),
            pongs: 0,
            read: 0,
        }
    }

    /// Of these, those that came in.
    pub fn held_of_peer(&self) -> usize {
        if self.connection.role == Role::Server {
            self.held()
        } else {
            0
        }
    }

    /// Bytes of bodies that wait here.
    pub fn held(&self) -> usize {
        self.bodies.values().map(|body| body.waiting.len()).sum()
    }

    /// Begins as many requests as there is room for.
    pub fn ask(&mut self) {
        while self.connection.has_room()
            && let Some(ask) = self.asks.pop_front()
        {
            let stream = self.connection.open();
            self.places.insert(stream, self.asked);
            self.asked += 1;
            self.got.push(Got::default());
            let mut head = vec![
                pair(":method", "POST"),
                pair(":scheme", "http"),
                pair(":authority", "pod"),
                pair(":path", &ask.path),
            ];
            head.extend(ask.fields);
            let body = Body {
                waiting: ask.body,
                end: true,
                trailers: ask.trailers,
            };
            let end = body.waiting.is_empty() && body.trailers.is_none();
            self.head(stream, end, &head);
            if !end {
                self.bodies.insert(stream, body);
                self.pump(stream);
            }
        }
    }

    fn head(&mut self, stream: StreamKey, end: bool, fields: &Fields) {
        self.connection.headers(stream, end, |encoder, out| {
            for (at, (name, value)) in fields.iter().enumerate() {
                encoder.pair(name, value, at % 7 == 6, out);
            }
        });
    }

    /// Takes in bytes.
    pub fn take(&mut self, input: &[u8]) -> Result<(), Code> {
        let mut input = [std::mem::take(&mut self.carry), input.to_vec()].concat();
        let mut at = 0;
        let mut block = std::mem::take(&mut self.block);
        loop {
            let before = at;
            let event = self.connection.read(&input, &mut at, &mut block);
            assert!(before <= at && at <= input.len());
            self.read += at - before;
            match event? {
                Some(event) => {
                    assert!(at > before, "an event takes bytes");
                    self.on(event, &input, &block);
                }
                None => break,
            }
        }
        self.block = block;
        assert!(
            input.len() - at < 16_384 + 9 + 24,
            "at most a frame is kept back"
        );
        self.carry = input.split_off(at);
        Ok(())
    }

    fn got(&mut self, stream: StreamKey) -> &mut Got {
        &mut self.got[self.places[&stream]]
    }

    fn on(&mut self, event: Event, input: &[u8], block: &Block) {
        let about = match &event {
            Event::Request { .. } | Event::Answer { .. } | Event::Trailers { .. } => {
                format!("{:?}", fields(block))
            }
            Event::Data { at, .. } => format!("{:?}", &input[at.clone()]),
            _ => String::new(),
        };
        // Places in the input depend on how it was cut.
        self.log.push(match &event {
            Event::Data { stream, end, .. } => format!("data {stream} {end} {about}"),
            event => format!("{event:?} {about}"),
        });
        match event {
            Event::Request { stream, end } => self.request(stream, end, block),
            Event::Answer { stream, end } => {
                let got = self.got(stream);
                got.head = fields(block);
                got.end = end;
                self.finish(stream);
            }
            Event::Data { stream, at, end } => {
                let data = &input[at];
                if self.connection.role == Role::Client {
                    let got = self.got(stream);
                    got.body.extend_from_slice(data);
                    got.end = end;
                    self.connection.passed_on(Some(stream), data.len());
                    self.finish(stream);
                } else {
                    let body = self.bodies.get_mut(&stream).unwrap();
                    body.waiting.extend_from_slice(data);
                    body.end = end;
                    self.pump(stream);
                }
            }
            Event::Trailers { stream } => {
                if self.connection.role == Role::Client {
                    let got = self.got(stream);
                    got.trailers = Some(fields(block));
                    got.end = true;
                    self.finish(stream);
                } else {
                    let body = self.bodies.get_mut(&stream).unwrap();
                    body.trailers = Some(fields(block));
                    body.end = true;
                    self.pump(stream);
                }
            }
            Event::Reset { stream, code, .. } => {
                if self.connection.role == Role::Client {
                    self.got(stream).reset = Some(code);
                }
                self.remove(stream);
            }
            Event::Window { stream } => self.pump(stream),
            Event::Windows => self.release(),
            Event::Leaves { last } => {
                let streams: Vec<_> = self.connection.streams().collect();
                for (stream, id) in streams {
                    if self.connection.role == Role::Client && id > last {
                        self.got(stream).reset = Some(Code::REFUSED);
                        self.remove(stream);
                    }
                }
            }
            Event::Pong => self.pongs += 1,
        }
    }

    fn request(&mut self, stream: StreamKey, end: bool, block: &Block) {
        let path = block.get(token::PATH).unwrap_or_default();
        let status = if block.over {
            "431"
        } else if block.get(token::METHOD) == Some(b"CONNECT") {
            "405"
        } else if path == b"/refuse" {
            "403"
        } else {
            "200"
        };
        if path == b"/reset" {
            self.connection.reset(stream, Code::CANCEL);
            return self.remove(stream);
        }
        let mut answer = vec![pair(":status", status)];
        if status != "200" {
            self.head(stream, true, &answer);
            if !end {
                self.connection.reset(stream, Code::NO_ERROR);
            }
            return self.remove(stream);
        }
        answer.extend(regular(&fields(block)));
        self.head(stream, end, &answer);
        let body = Body {
            end,
            ..Body::default()
        };
        self.bodies.insert(stream, body);
        self.finish(stream);
    }

    /// Sends what waits on a stream.
    fn pump(&mut self, stream: StreamKey) {
        let Some(body) = self.bodies.get_mut(&stream) else {
            return;
        };
        if self.connection.stream(stream).send_done {
            return;
        }
        let want = body.waiting.len();
        let now = self.connection.allowance(stream, want);
        let all = now == want;
        let end = all && body.end && body.trailers.is_none();
        if now > 0 || end {
            let data: Vec<u8> = body.waiting.drain(..now).collect();
            self.connection.data(stream, &data, end);
        }
        let trailers = if all && body.end {
            body.trailers.take()
        } else {
            None
        };
        if self.connection.role == Role::Server {
            self.connection.passed_on(Some(stream), now);
        }
        if let Some(trailers) = trailers {
            self.head(stream, true, &trailers);
        }
        self.finish(stream);
    }

    /// Streams that waited go on.
    pub fn release(&mut self) {
        while let Some(stream) = self.connection.waiter() {
            self.pump(stream);
        }
    }

    fn finish(&mut self, stream: StreamKey) {
        let state = self.connection.stream(stream);
        if self.connection.role == Role::Client && state.receive_done && !state.send_done {
            self.connection.reset(stream, Code::NO_ERROR);
            self.remove(stream);
        } else if state.receive_done && state.send_done {
            self.remove(stream);
        }
    }

    fn remove(&mut self, stream: StreamKey) {
        self.connection.remove(stream);
        self.places.remove(&stream);
        let body = self.bodies.remove(&stream);
        if self.connection.role == Role::Server {
            let held = body.map_or(0, |body| body.waiting.len());
            self.connection.passed_on(None, held);
        }
    }

    /// Moves bytes until the connection is done or the other side closes it. All that came in is added to `record`.
    /// `turn` is called whenever something happened.
    pub async fn run(
        mut self,
        io: impl AsyncRead + AsyncWrite,
        mut turn: impl FnMut(&mut End),
        record: &mut Vec<u8>,
    ) -> (End, Result<(), Code>) {
        let (mut reader, mut writer) = tokio::io::split(io);
        let mut buffer = vec![0; 5_000];
        loop {
            self.ask();
            turn(&mut self);
            self.release();
            if self.connection.is_done() && self.connection.out.is_empty() {
                // What the other side still says is read over, so that it reads all that was said to it.
                let _ = writer.shutdown().await;
                while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
                return (self, Ok(()));
            }
            tokio::select! {
                written = writer.write(&self.connection.out), if !self.connection.out.is_empty() => {
                    let Ok(written) = written else { return (self, Ok(())) };
                    self.connection.out.drain(..written);
                }
                count = reader.read(&mut buffer), if self.connection.may_read() => {
                    let count = count.unwrap_or(0);
                    if count == 0 {
                        return (self, Ok(()));
                    }
                    record.extend_from_slice(&buffer[..count]);
                    if let Err(code) = self.take(&buffer[..count]) {
                        let _ = writer.write_all(&self.connection.out).await;
                        return (self, Err(code));
                    }
                }
            }
        }
    }
}
