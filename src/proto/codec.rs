//! The codec of all generated clients and servers: prost's, with smaller buffers and another status for bad messages.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, DecodeBuf, Decoder},
};
use tonic_prost::ProstCodec;

use crate::limits::{ANSWER_PIECE_BYTES, CALL_BUFFER_BYTES};

/// Encodes and decodes messages as prost does. Bytes that cannot be decoded are INVALID_ARGUMENT, where tonic-prost
/// says INTERNAL.
///
/// build.rs names this type to the code generator.
#[derive(Debug)]
pub(crate) struct Codec<E, D>(PhantomData<(E, D)>);

impl<E, D> Default for Codec<E, D> {
    fn default() -> Self {
        Codec(PhantomData)
    }
}

impl<E, D> tonic::codec::Codec for Codec<E, D>
where
    E: Message + 'static,
    D: Message + Default + 'static,
{
    type Encode = E;
    type Decode = D;
    type Encoder = <ProstCodec<E, D> as tonic::codec::Codec>::Encoder;
    type Decoder = MessageDecoder<<ProstCodec<E, D> as tonic::codec::Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<E, D>::raw_encoder(buffer_settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        MessageDecoder(ProstCodec::<E, D>::raw_decoder(buffer_settings()))
    }
}

/// tonic allocates two buffers for each call when it begins, of 8 KiB unless told otherwise. They grow with their
/// messages. An answer is sent in pieces of at least [`ANSWER_PIECE_BYTES`].
fn buffer_settings() -> BufferSettings {
    BufferSettings::new(CALL_BUFFER_BYTES, ANSWER_PIECE_BYTES)
}

/// The decoder of a [`Codec`].
#[derive(Debug)]
pub(crate) struct MessageDecoder<P>(P);

impl<P: Decoder<Error = Status>> Decoder for MessageDecoder<P> {
    type Item = P::Item;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<P::Item>, Status> {
        self.0.decode(source).map_err(|status| Status::invalid_argument(status.message()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
