// What the warps of gemv.cu multiply: a tile of tokens, and how a single one gets into shared
// memory.
#pragma once

#include "cuda/gemv.h"
#include "cuda/intrinsics.h"
#include "cuda/products.h"
#include "cuda/quantize.h"

namespace llama2q::cuda {

// A thread's share of the activations, from a unit on: in shared memory for one token, else global.
template <int kGroup, int kWidth>
struct TokenInput {
  static constexpr int kTiles = kWidth == 16 ? 2 : 1;  // of 8 columns of the mma
  static constexpr RecordLayout kRecord = record_layout(kGroup, kWidth);
  const unsigned char* codes;
  const unsigned char* starts;
  const unsigned char* scales;

  // records: of the slice's first unit.
  __device__ __forceinline__ explicit TokenInput(const unsigned char* records) {
    const int token = kWidth == 1 ? 0 : lane() / 4, pair = kWidth == 1 ? 0 : lane() % 4;
    codes = records + token * kStepColumns + lane() % 4 * 16;
    starts = records + kRecord.starts + pair * 16;
    scales = records + kRecord.scales + pair * 8;
  }
  __device__ __forceinline__ void advance(int n_units) {
    codes += n_units * kRecord.bytes;
    starts += n_units * kRecord.bytes;
    scales += n_units * kRecord.bytes;
  }
  // The thread's columns of step `s` of unit `i`.
  __device__ __forceinline__ uint4 load(int i, int s, int tile) const {
    const int at = i * kRecord.bytes + (s * kWidth + tile * 8) * kStepColumns;
    return *reinterpret_cast<const uint4*>(codes + at);
  }
  __device__ __forceinline__ const int32_t* starts_of(int i, int group, int tile) const {
    const int at = i * kRecord.bytes + (group * ((kWidth + 1) / 2) + tile * 4) * 16;
    return reinterpret_cast<const int32_t*>(starts + at);
  }
  // Of the thread's two tokens.
  __device__ __forceinline__ float2 scales_of(int i, int group, int tile) const {
    const unsigned char* const at = scales + i * kRecord.bytes + (group * kWidth + tile * 8) * 4;
    if constexpr (kWidth == 1) {
      return {*reinterpret_cast<const float*>(at), 0.0f};
    } else {
      return *reinterpret_cast<const float2*>(at);
    }
  }
};

// Quantizes the warp's slice of the single token; records: of the slice, in shared memory.
template <int kGroup>
__device__ __forceinline__ void prepare_token(const GemvArgs& args, Slice slice,
                                              unsigned char* records, float* scratch) {
  using Unit = UnitOf<kGroup>;
  constexpr int kUnitOctets = Unit::kColumns / kOctet, kStepOctets = kStepColumns / kOctet;
  constexpr RecordLayout kRecord = record_layout(kGroup, 1);
  const bool aligned = args.cols % 4 == 0;
  const bool normed = args.norm != nullptr;
  const float r = normed ? inverse_rms(args.x, args.cols, aligned, args.eps, scratch) : 1.0f;
  const int end = slice.end * kUnitOctets;
  bool finite = true;
  for (int first = slice.begin * kUnitOctets; first < end; first += kLanes) {
    const int octet = first + lane(), column = octet * kOctet;
    float v[kOctet];
    load_octet(args.x, column, args.cols, aligned, v);
    if (normed) {
      float weight[kOctet];
      load_octet(args.norm, column, args.cols, aligned, weight);
      normalize(v, weight, r);
    }
    const QuantizedOctet quantized = quantize_octet<kGroup>(v);
    finite = finite && quantized.finite;
    if (octet >= end) continue;
    unsigned char* const record = records + (octet / kUnitOctets - slice.begin) * kRecord.bytes;
    const int of_unit = octet % kUnitOctets;
    const int at = of_unit / kStepOctets * kStepColumns + octet_byte(of_unit % kStepOctets);
    *reinterpret_cast<uint2*>(record + at) = quantized.codes;
    const int group = of_unit * kOctet / kGroup;
    if (of_unit * kOctet % kGroup != 0) continue;
    const int32_t s = quantized.start;
    reinterpret_cast<int4*>(record + kRecord.starts)[group] = {s, s, s, s};
    reinterpret_cast<float*>(record + kRecord.scales)[group] = quantized.scale;
  }
  if (!finite) raise_fault(args.fault.fault, args.fault.code);
  sync_warp();
}

// Copies the records of the warp's slice to shared memory.
__device__ __forceinline__ void copy_records(unsigned char* to, const unsigned char* from,
                                             int bytes) {
  for (int at = lane() * 16; at < bytes; at += kLanes * 16) copy_async16(to + at, from + at);
  commit_copies();
  wait_copies<0>();
  sync_warp();
}

}  // namespace llama2q::cuda
