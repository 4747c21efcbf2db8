// What an instruction set provides. One file per set implements it; `choose_kernels` takes the best that runs here.
//
// Every kernel computes a row from that row's inputs alone, in an order of operations that depends on sizes and
// positions only, and every set follows the same order with the same roundings. So a row's bits are the same for any
// number of rows in a step, any split over threads, and any instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model_types.h"

namespace socle {

constexpr int kTilePositions = 16;  // of a KV cache: one lane of a vector is one position

// How keys and values are kept, 16 positions of one head to a tile.
//
//   keys     [head_dim][16 positions], so that scores of 16 positions fill a vector without a horizontal sum
//   values   [16 positions][head_dim, rounded up to 16]
//   kInt8 adds a float32 scale per position behind the keys and behind the values
enum class KvEncoding : int { kHalf, kInt8 };

struct KvLayout {
  KvEncoding encoding = KvEncoding::kHalf;
  int head_dim = 0;

  int value_stride() const { return round_up(head_dim, 16); }
  size_t element_bytes() const { return encoding == KvEncoding::kHalf ? 2 : 1; }
  size_t scale_bytes() const { return encoding == KvEncoding::kHalf ? 0 : sizeof(float) * kTilePositions; }
  size_t value_offset() const { return element_bytes() * kTilePositions * head_dim + scale_bytes(); }
  size_t tile_bytes() const {
    return round_up(static_cast<int>(value_offset() + element_bytes() * kTilePositions * value_stride() + scale_bytes()),
                    kVectorBytes);
  }
};

// Attention of some query rows of one KV head. Query row i sees the positions begins[i] .. ends[i] - 1.
struct Attention {
  KvLayout layout;
  const uint8_t* const* tiles;  // of this layer and head, by position / 16
  const float* const* queries;  // [num_queries][head_dim], scaled by 1 / sqrt(head_dim)
  float* const* outputs;        // [num_queries][head_dim]
  const int* begins;
  const int* ends;
  int num_queries;
  float* scores;  // scratch: [kMaxQueries][score_stride]
  size_t score_stride;
};
constexpr int kMaxQueries = 16;

// What a set's `TileProduct` runs at once: some rows on a tile.
struct Piece {
  const uint8_t* tile;
  size_t tile_bytes;
  int num_tiles;  // that follow one another
  int num_groups;
  int num_vectors;  // of a block
  const uint8_t* records;
  size_t record_bytes;
  size_t group_stride;
  float* out;
  size_t out_stride;
  Store store;
  const uint8_t* next;  // weights that are wanted later: to fetch with each group, as many cache lines of int8 blocks
  int next_lines_per_group;
};

constexpr int kStretchValues = 128;  // of a row of logits, which sampling passes over stretch by stretch

struct Kernels {
  const char* name;
  bool (*is_supported)();
  int max_block_rows;  // of `Rows`: as many rows as the registers hold sums for
  size_t decoded_block_bytes;  // of Encoding::kDecoded, 0 if the set does without

  // out[r][16 t ..] = or += rows[r] . matrix tile t, for `num_rows` rows from `first_row` and tiles [first_tile, last_tile).
  // `out` is where first_row and first_tile meet. Row r reads nothing but row r. `decoded` has room for a tile of the
  // matrix in blocks of decoded_block_bytes, aligned to 64 bytes: many rows share the work of decoding it.
  void (*product)(const Matrix&, const Rows&, int first_row, int num_rows, int first_tile, int last_tile, float* out,
                  size_t out_stride, Store, uint8_t* decoded);

  // x [n] -> out [n], scaled to mean square 1, times weight.
  void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);

  // x [num_groups * group_inputs] -> a record of `Rows` per group; a value that is not finite makes the scale NaN.
  void (*quantise)(const float* x, int num_groups, int group_inputs, uint8_t* record, size_t group_stride);

  // Rotates dimension i with i + head_dim / 2 (as in Hugging Face) by angles given as cos, sin [head_dim / 2].
  void (*rotate)(float* head, const float* cos, const float* sin, int head_dim);

  void (*add)(float* x, const float* y, int n);    // x += y
  void (*scale)(float* x, float factor, int n);    // x *= factor
  void (*gate)(float* gate, const float* up, int n);  // gate = silu(gate) * up

  // One position's key and value of one head into its tile.
  void (*store_kv)(const KvLayout&, uint8_t* tile, int lane, const float* key, const float* value);
  void (*attend)(const Attention&);

  // What is not finite becomes NaN: an infinite logit would read as a mask, or as a certainty.
  void (*expose)(float* x, int n);

  // tops[t] = the largest of x[16 t .. 16 t + 15] for tiles [first, last), as far as they lie below n; NaN counts as -inf.
  void (*tile_tops)(const float* x, int first, int last, int n, float* tops);

  // tops[i] = the largest of stretch i of n values. Returns false if one is NaN or infinite; -inf may be among them.
  bool (*stretch_tops)(const float* x, int n, float* tops);

  // weights[i] = e^((x[i] - top) / temperature), or 0 if that is below e^-87, and sums[i] that of stretch i of them.
  // `top` is the largest of x, and weights may be x itself.
  void (*weigh)(const float* x, int n, float top, float temperature, float* weights, float* sums);

  // Does `rounds` of multiply-accumulate in registers alone; returns how many int8 products that were. nullptr: unknown.
  int64_t (*dot_products)(int64_t rounds);
};

// The kernels by name, or the fastest supported ones for "auto"; nullptr if the name is unknown or cannot run here.
const Kernels* choose_kernels(const char* name);

// All that were compiled in, fastest first, ended by nullptr.
const Kernels* const* compiled_kernels();

extern const Kernels kAvx512VnniKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kNeonKernels;
extern const Kernels kPortableKernels;

}  // namespace socle
