// The kernels that are the same for every instruction set, written with its sixteen-lane `Vec`.
//
// Included by each kernels_*.cpp after its vec_*.h and its `TileProduct`; all names are local to that file, so that no
// linker can take one set's code for another's. Nothing from the standard library is instantiated here for that reason.
#pragma once

#include "kernels.h"

namespace socle {
namespace {

constexpr int kVecLanes = 16;
constexpr float kNegativeInfinity = -__builtin_inff();

inline int smaller(int a, int b) { return a < b ? a : b; }
inline int larger(int a, int b) { return a > b ? a : b; }
inline Vec load_up_to(const float* p, int n) { return n >= kVecLanes ? load(p) : load_part(p, n); }
inline void store_up_to(float* p, Vec x, int n) {
  if (n >= kVecLanes) {
    store(p, x);
  } else {
    store_part(p, x, n);
  }
}

// e^x for x from -87.3 to 88, and what these give beyond them: x = n ln 2 + r, and e^r by a polynomial (Cephes' expf; error
// below 2 ulp).
inline Vec exponential(Vec x) {
  x = min(max(x, all(-87.3f)), all(88.0f));
  const Vec n = round(mul(x, all(1.44269504088896341f)));
  const Vec r = fma(n, all(2.12194440e-4f), fma(n, all(-0.693359375f), x));
  Vec p = fma(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  return times_power_of_two(add(fma(p, mul(r, r), r), all(1.0f)), n);
}

// ---- products

// Rows beyond `kCachedRows` would push each other out of the cache while the weights pass, so they take turns.
constexpr int kCachedRows = 64;

// How far ahead weights are fetched that pass by once. The hardware fetches ahead too, but stops at pages of 4 KB.
constexpr int kStreamBytesAhead = 2 * kInt4BlockBytes;

struct ProductArguments {
  const Matrix* matrix;
  const Rows* rows;
  size_t out_stride;
  Store store;
  uint8_t* decoded;
};

using RunPiece = void (*)(const Piece&);

template <Encoding encoding, int num_rows>
void run_piece(const Piece& first) {
  Piece p = first;  // in registers, as `run` is inlined
  for (int tile = 0; tile < first.num_tiles; tile++, p.tile += p.tile_bytes, p.next += p.tile_bytes, p.out += kTileRows) {
    TileProduct::run<encoding, num_rows>(p);
  }
}

// `run_piece` for 1 .. kMaxRows rows.
template <Encoding encoding>
struct RunPieces {
  RunPiece of[TileProduct::kMaxRows + 1];
  constexpr RunPieces() : of() { fill<TileProduct::kMaxRows>(); }

 private:
  template <int num_rows>
  constexpr void fill() {
    if constexpr (num_rows > 0) {
      of[num_rows] = run_piece<encoding, num_rows>;
      fill<num_rows - 1>();
    }
  }
};

// Up to kCachedRows rows, cut where blocks of rows end: a block has at most kMaxRows.
struct Pieces {
  Piece piece[kCachedRows];
  int height[kCachedRows];
  int count = 0;

  Pieces(const ProductArguments& p, int first_row, int num_rows, float* out) {
    const int block_rows = p.rows->block_rows;
    for (int row = first_row; row < first_row + num_rows; row += height[count++]) {
      height[count] = smaller(block_rows - row % block_rows, first_row + num_rows - row);
      Piece& one = piece[count];
      one.num_groups = p.matrix->num_groups();
      one.num_vectors = p.matrix->vectors_per_block();
      one.num_tiles = 1;
      one.tile_bytes = p.matrix->tile_bytes();
      one.records = p.rows->records + p.rows->offset_of(row);
      one.record_bytes = p.rows->record_bytes();
      one.group_stride = p.rows->group_stride();
      one.out = out + (row - first_row) * p.out_stride;
      one.out_stride = p.out_stride;
      one.store = p.store;
    }
    const int num_shares = count * p.matrix->num_groups();
    const int num_lines = static_cast<int>(p.matrix->tile_bytes() / kVectorBytes) + 1;
    for (int i = 0; i < count; i++) piece[i].next_lines_per_group = (num_lines + num_shares - 1) / num_shares;
  }
};

// All pieces on one tile; together they fetch `next_tile`.
template <Encoding encoding>
void run_tile(Pieces& pieces, const uint8_t* tile, const uint8_t* next_tile) {
  static constexpr RunPieces<encoding> kRun;
  for (int i = 0; i < pieces.count; i++) {
    Piece& piece = pieces.piece[i];
    piece.tile = tile;
    piece.next = next_tile;
    kRun.of[pieces.height[i]](piece);
    next_tile += kVectorBytes * piece.next_lines_per_group * piece.num_groups;
    piece.out += kTileRows * piece.num_tiles;
  }
}

// `out` is where first_row and first_tile meet.
template <Encoding encoding, class Product = TileProduct>
void run_tiles(const ProductArguments& p, int first_row, int num_rows, int first_tile, int last_tile, float* out) {
  Pieces pieces(p, first_row, num_rows, out);
  const size_t tile_bytes = p.matrix->tile_bytes();
  const uint8_t* tile = p.matrix->data + tile_bytes * first_tile;
  if (pieces.count == 1 || encoding == Encoding::kLowRank) {
    for (int i = 0; i < pieces.count; i++) pieces.piece[i].num_tiles = last_tile - first_tile;
    return run_tile<encoding>(pieces, tile, tile + kStreamBytesAhead);
  }
  for (int i = first_tile; i < last_tile; i++, tile += tile_bytes) {
    if constexpr (encoding == Encoding::kInt4 && Product::kRowsWorthDecoding > 0) {
      if (num_rows >= Product::kRowsWorthDecoding) {
        Product::decode(tile, p.matrix->num_groups(), p.decoded);
        run_tile<Encoding::kDecoded>(pieces, p.decoded, tile + tile_bytes);
        continue;
      }
    }
    run_tile<encoding>(pieces, tile, tile + tile_bytes);
  }
}

inline float dot(const float* a, const float* b, int n) {
  Vec total = zeros();
  for (int i = 0; i < n; i += kVecLanes) total = fma(load_up_to(a + i, n - i), load_up_to(b + i, n - i), total);
  return sum(total);
}

inline void run_float_tiles(const ProductArguments& p, int first_row, int num_rows, int first_tile, int last_tile,
                            float* out) {
  const Matrix& matrix = *p.matrix;
  const auto* weights = reinterpret_cast<const float*>(matrix.data);
  for (int column = first_tile * kTileRows; column < smaller(last_tile * kTileRows, matrix.rows); column++, out++) {
    for (int row = 0; row < num_rows; row++) {
      const float* x = p.rows->dense + static_cast<size_t>(first_row + row) * p.rows->dense_stride;
      const float y = dot(weights + static_cast<size_t>(column) * matrix.inputs, x, matrix.inputs);
      float& target = out[row * p.out_stride];
      target = p.store == Store::kSet ? y : target + y;
    }
  }
}

void product(const Matrix& matrix, const Rows& rows, int first_row, int num_rows, int first_tile, int last_tile,
             float* out, size_t out_stride, Store store, uint8_t* decoded) {
  const ProductArguments p = {&matrix, &rows, out_stride, store, decoded};
  const int step = larger(1, kCachedRows / rows.block_rows) * rows.block_rows;
  for (int done = 0; done < num_rows; done += step, out += step * out_stride) {
    const int first = first_row + done, count = smaller(step, num_rows - done);
    switch (matrix.encoding) {
      case Encoding::kInt4: run_tiles<Encoding::kInt4>(p, first, count, first_tile, last_tile, out); break;
      case Encoding::kInt8: run_tiles<Encoding::kInt8>(p, first, count, first_tile, last_tile, out); break;
      case Encoding::kLowRank: run_tiles<Encoding::kLowRank>(p, first, count, first_tile, last_tile, out); break;
      case Encoding::kFloat32: run_float_tiles(p, first, count, first_tile, last_tile, out); break;
      case Encoding::kDecoded: break;  // no matrix is
    }
  }
}

// ---- rows

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  Vec squares = zeros();
  for (int i = 0; i < n; i += kVecLanes) {
    const Vec v = load_up_to(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const float mean = sum(squares) / static_cast<float>(n);
  const Vec factor = all(1.0f / __builtin_sqrtf(mean + eps) + 0.0f * mean);  // NaN, not 0, where the squares overflow
  for (int i = 0; i < n; i += kVecLanes) {
    const Vec v = load_up_to(x + i, n - i);
    store_up_to(out + i, mul(mul(v, factor), load_up_to(weight + i, n - i)), n - i);
  }
}

// The largest magnitude, or NaN if a value is not finite: nothing bad is rounded away.
inline float magnitude_of(const float* x, int n) {
  Vec magnitudes = zeros();
  for (int i = 0; i < n; i += kVecLanes) magnitudes = larger_magnitude(magnitudes, load_up_to(x + i, n - i));
  const float top = largest_magnitude(magnitudes);
  return top + (top - top);
}

// What brings magnitudes up to `top` into int8. Below 127 / FLT_MAX it would be infinite: such values are rounded to 0.
inline float int8_factor(float top) { return top > 3.74e-37f ? 127.0f / top : 0.0f; }

inline int whole(float x) { return x == x ? static_cast<int>(x) : 0; }

template <class Product = TileProduct>
void quantise(const float* x, int num_groups, int group_inputs, uint8_t* record, size_t group_stride) {
  for (int group = 0; group < num_groups; group++, x += group_inputs, record += group_stride) {
    const float top = magnitude_of(x, group_inputs);
    const Vec factor = all(int8_factor(top));
    auto* values = reinterpret_cast<int8_t*>(record);
    // Written field by field: a tail that is put together in memory and copied would have to wait for the stores.
    auto* tail = reinterpret_cast<RecordTail*>(record + group_inputs);
    int32_t offset = 0;
    Vec total = zeros();  // of whole numbers, so that it is exact
    for (int i = 0; i < group_inputs; i += kVecLanes) {
      const Vec rounded = round(mul(load(x + i), factor));
      store_int8(values + i, rounded);
      total = add(total, rounded);
      if constexpr (Product::kHasSubgroupOffsets) {
        if (group_inputs != kGroupInputs || (i + kVecLanes) % kSubgroupInputs) continue;
        const int subtotal = whole(sum(total));
        tail->subgroup_offsets[i / kSubgroupInputs] = Product::subgroup_offset(subtotal, total);
        offset -= 128 * subtotal;
        total = zeros();
      }
    }
    tail->offset = offset - 128 * whole(sum(total));
    tail->scale = top / 127.0f;
  }
}

void rotate(float* head, const float* cos, const float* sin, int head_dim) {
  const int half = head_dim / 2;
  for (int i = 0; i < half; i += kVecLanes) {
    const int left_over = half - i;
    const Vec left = load_up_to(head + i, left_over), right = load_up_to(head + half + i, left_over);
    const Vec c = load_up_to(cos + i, left_over), s = load_up_to(sin + i, left_over);
    store_up_to(head + i, sub(mul(left, c), mul(right, s)), left_over);
    store_up_to(head + half + i, add(mul(right, c), mul(left, s)), left_over);
  }
}

void add_to(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += kVecLanes) {
    store_up_to(x + i, add(load_up_to(x + i, n - i), load_up_to(y + i, n - i)), n - i);
  }
}

void scale_by(float* x, float factor, int n) {
  for (int i = 0; i < n; i += kVecLanes) store_up_to(x + i, mul(load_up_to(x + i, n - i), all(factor)), n - i);
}

void gate_with(float* gate, const float* up, int n) {
  for (int i = 0; i < n; i += kVecLanes) {
    const Vec g = load_up_to(gate + i, n - i);
    const Vec silu = div(g, add(all(1.0f), exponential(sub(zeros(), g))));
    store_up_to(gate + i, mul(silu, load_up_to(up + i, n - i)), n - i);
  }
}

void expose(float* x, int n) {
  for (int i = 0; i < n; i += kVecLanes) {
    const Vec v = load_up_to(x + i, n - i);
    store_up_to(x + i, fma(v, zeros(), v), n - i);
  }
}

void tile_tops(const float* x, int first, int last, int n, float* tops) {
  for (int tile = first; tile < last; tile++) {
    const int start = tile * kTileRows;
    const float top = largest(keep_lanes(load(x + start), 0, smaller(kTileRows, n - start), kNegativeInfinity));
    tops[tile] = top == top ? top : kNegativeInfinity;
  }
}

// ---- sampling

inline Vec load_logits(const float* p, int n) {
  return n >= kVecLanes ? load(p) : keep_lanes(load_part(p, n), 0, n, kNegativeInfinity);
}

bool stretch_tops(const float* x, int n, float* tops) {
  const Vec lowest = all(-__FLT_MAX__);
  Vec poison = zeros();
  for (int start = 0; start < n; start += kStretchValues) {
    const int end = smaller(start + kStretchValues, n);
    Vec top = all(kNegativeInfinity);
    for (int i = start; i < end; i += kVecLanes) {
      const Vec v = load_logits(x + i, end - i);
      poison = fma(max(lowest, v), zeros(), poison);  // keeps NaN, and makes a number of -inf
      top = max(top, v);
    }
    tops[start / kStretchValues] = largest(top);
  }
  return sum(poison) == 0.0f;
}

void weigh(const float* x, int n, float top, float temperature, float* weights, float* sums) {
  const Vec most = all(top), divisor = all(temperature), least = exponential(all(kNegativeInfinity));
  for (int start = 0; start < n; start += kStretchValues) {
    const int end = smaller(start + kStretchValues, n);
    Vec total = zeros();
    for (int i = start; i < end; i += kVecLanes) {
      const Vec exponent = div(sub(load_logits(x + i, end - i), most), divisor);
      const Vec weight = sub(exponential(exponent), least);
      store_up_to(weights + i, weight, end - i);
      total = add(total, weight);
    }
    sums[start / kStretchValues] = sum(total);
  }
}

}  // namespace
}  // namespace socle

#include "attention_impl.h"

namespace socle {
namespace {

// All of a set's kernels, but what measures its peak.
constexpr Kernels this_set(const char* name, bool (*is_supported)(), int64_t (*dot_products)(int64_t) = nullptr) {
  return {name,     is_supported, TileProduct::kMaxRows, TileProduct::kDecodedBlockBytes,
          product,  rms_norm,     quantise<>,            rotate,
          add_to,   scale_by,     gate_with,             store_kv,
          attend,   expose,       tile_tops,             stretch_tops,
          weigh,    dot_products};
}

}  // namespace
}  // namespace socle
