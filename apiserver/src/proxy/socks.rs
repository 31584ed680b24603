//! SOCKS5 proxies (RFC 1928), with user and password authentication (RFC 1929).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;

use super::state::{ProxyRequest, ProxyState};

const VERSION: u8 = 5;
// Authentication methods.
const NO_AUTHENTICATION: u8 = 0;
const PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
// Reply codes.
const SUCCEEDED: u8 = 0;
const NOT_ALLOWED: u8 = 2;
const UNREACHABLE: u8 = 4;

/// Serves one connection: authenticates the client, connects to its target and forwards bytes.
pub(super) async fn serve(mut stream: TcpStream, state: &ProxyState) -> io::Result<()> {
    let (required, refuse) = {
        let behaviour = state.behaviour();
        (behaviour.credentials.clone(), behaviour.refuse_with.is_some())
    };
    let Some(credentials) = authenticate(&mut stream, required.as_deref()).await? else { return stream.shutdown().await };
    let target = read_target(&mut stream).await?;
    let connected = if refuse { Err(NOT_ALLOWED) } else { state.connect(&target).await.map_err(|_| UNREACHABLE) };
    state.behaviour().requests.push(ProxyRequest {
        method: "SOCKS5".into(),
        target,
        credentials,
        user_agent: String::new(),
        is_accepted: connected.is_ok(),
    });
    let reply = connected.as_ref().err().copied().unwrap_or(SUCCEEDED);
    stream.write_all(&[VERSION, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    match connected {
        Ok(mut server) => copy_bidirectional(&mut stream, &mut server).await.map(|_| ()),
        Err(_) => stream.shutdown().await,
    }
}

/// Chooses an authentication method and checks user and password. Returns `user:password`, empty without authentication; `None` if the
/// client is refused.
async fn authenticate(stream: &mut TcpStream, required: Option<&str>) -> io::Result<Option<String>> {
    expect(stream, VERSION).await?;
    let methods = read_text(stream).await?;
    let method = match required {
        Some(_) if methods.contains(&PASSWORD) => PASSWORD,
        None if methods.contains(&NO_AUTHENTICATION) => NO_AUTHENTICATION,
        _ => NO_METHOD,
    };
    stream.write_all(&[VERSION, method]).await?;
    if method != PASSWORD {
        return Ok((method == NO_AUTHENTICATION).then(String::new));
    }
    expect(stream, 1).await?;
    let (user, password) = (read_text(stream).await?, read_text(stream).await?);
    let given = String::from_utf8_lossy(&[&user[..], b":", &password].concat()).into_owned();
    let is_right = required == Some(&given);
    stream.write_all(&[1, u8::from(!is_right)]).await?;
    Ok(is_right.then_some(given))
}

/// Reads a CONNECT request and returns its target as `host:port`.
async fn read_target(stream: &mut TcpStream) -> io::Result<String> {
    expect(stream, VERSION).await?;
    expect(stream, 1).await?;
    expect(stream, 0).await?;
    Ok(match stream.read_u8().await? {
        1 => {
            let address = Ipv4Addr::from(stream.read_u32().await?);
            SocketAddr::from((address, stream.read_u16().await?)).to_string()
        }
        4 => {
            let address = Ipv6Addr::from(stream.read_u128().await?);
            SocketAddr::from((address, stream.read_u16().await?)).to_string()
        }
        _ => {
            let name = read_text(stream).await?;
            format!("{}:{}", String::from_utf8_lossy(&name), stream.read_u16().await?)
        }
    })
}

/// Reads one byte, which must have this value.
async fn expect(stream: &mut TcpStream, byte: u8) -> io::Result<()> {
    let read = stream.read_u8().await?;
    if read == byte { Ok(()) } else { Err(io::Error::other(format!("read {read} instead of {byte}"))) }
}

/// Reads a length byte and as many bytes.
async fn read_text(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut text = vec![0; usize::from(stream.read_u8().await?)];
    stream.read_exact(&mut text).await?;
    Ok(text)
}
