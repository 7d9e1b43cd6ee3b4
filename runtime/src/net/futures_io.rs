//! Sockets with the traits of `futures-io`.

use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_io::{AsyncRead, AsyncWrite};

use super::asynchronous::{Async, ByteStream};
use super::{TcpListener, TcpStream, UnixListener, UnixStream};
use crate::around;

impl<T: ByteStream> AsyncRead for Async<T> {
    #[inline]
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_receive_into(context, buffer)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_receive_vectored(context, buffers)
    }
}

/// Closing ends the writing half, so that the peer reads an end; what it still has to say can be read.
impl<T: ByteStream> AsyncWrite for Async<T> {
    #[inline]
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send_vectored(context, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_end()
    }
}

macro_rules! streams {
    ($($listener:ty => $stream:ty),*) => {
        $(
            /// Connections. It has no end but that of a runtime that is shut down.
            impl Stream for Async<$listener> {
                type Item = io::Result<$stream>;

                fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
                    if around::is_shutting_down() {
                        return Poll::Ready(None);
                    }
                    self.get_mut().poll_accept(context).map(|accepted| Some(accepted.map(|(stream, _)| stream)))
                }
            }
        )*
    };
}

streams!(TcpListener => TcpStream, UnixListener => UnixStream);
