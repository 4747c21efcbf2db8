// Keys and values into their tiles, and attention over them, for every instruction set. Included by kernels_impl.h, whose
// helpers it uses; all names are local to the including file.
#pragma once

namespace socle {
namespace {

struct HalfKv {
  using Element = uint16_t;
  static constexpr bool kHasScales = false;
  static Vec load_sixteen(const Element* p) { return load_half(p); }
};
struct Int8Kv {
  using Element = int8_t;
  static constexpr bool kHasScales = true;
  static Vec load_sixteen(const Element* p) { return load_int8(p); }
};

template <class Kv>
typename Kv::Element* keys_of(uint8_t* tile) {
  return reinterpret_cast<typename Kv::Element*>(tile);
}
template <class Kv>
const typename Kv::Element* keys_of(const uint8_t* tile) {
  return reinterpret_cast<const typename Kv::Element*>(tile);
}
inline const float* key_scales(const KvLayout& layout, const uint8_t* tile) {
  return reinterpret_cast<const float*>(tile + layout.element_bytes() * kTilePositions * layout.head_dim);
}
inline const float* value_scales(const KvLayout& layout, const uint8_t* tile) {
  return reinterpret_cast<const float*>(tile + layout.value_offset() +
                                        layout.element_bytes() * kTilePositions * layout.value_stride());
}

constexpr float kNan = __builtin_nanf("");
constexpr float kHalfOverflow = 65520.0f;  // what rounds to infinity in fp16

// A position whose key or value is not finite is kept as a key of NaN and a value of 0. Whoever sees it gets a score
// that is NaN; whoever does not, such as an earlier row of the same tile, weighs it by 0, and 0 * NaN would be NaN.
void store_half_kv(const KvLayout& layout, uint8_t* tile, int lane, const float* key, const float* value) {
  uint16_t converted[kVecLanes];
  auto* keys = reinterpret_cast<uint16_t*>(tile);
  auto* values = reinterpret_cast<uint16_t*>(tile + layout.value_offset()) + lane * layout.value_stride();
  const bool is_finite =
      magnitude_of(key, layout.head_dim) < kHalfOverflow && magnitude_of(value, layout.head_dim) < kHalfOverflow;
  for (int i = 0; i < layout.head_dim; i += kVecLanes) {
    const int count = smaller(kVecLanes, layout.head_dim - i);
    store_half(converted, is_finite ? load_up_to(key + i, count) : all(kNan));
    for (int j = 0; j < count; j++) keys[(i + j) * kTilePositions + lane] = converted[j];
    store_half(values + i, is_finite ? load_up_to(value + i, count) : zeros());
  }
}

void store_int8_kv(const KvLayout& layout, uint8_t* tile, int lane, const float* key, const float* value) {
  int8_t converted[kVecLanes];
  auto* keys = reinterpret_cast<int8_t*>(tile);
  auto* values = reinterpret_cast<int8_t*>(tile + layout.value_offset()) + lane * layout.value_stride();
  const float key_top = magnitude_of(key, layout.head_dim), value_top = magnitude_of(value, layout.head_dim);
  const bool is_finite = key_top + value_top >= 0.0f;
  const Vec key_factor = all(int8_factor(key_top));
  const Vec value_factor = all(int8_factor(value_top));
  for (int i = 0; i < layout.head_dim; i += kVecLanes) {
    const int count = smaller(kVecLanes, layout.head_dim - i);
    store_int8(converted, is_finite ? mul(load_up_to(key + i, count), key_factor) : zeros());
    for (int j = 0; j < count; j++) keys[(i + j) * kTilePositions + lane] = converted[j];
    store_int8(values + i, is_finite ? mul(load_up_to(value + i, count), value_factor) : zeros());
  }
  const_cast<float*>(key_scales(layout, tile))[lane] = is_finite ? key_top / 127.0f : kNan;
  const_cast<float*>(value_scales(layout, tile))[lane] = is_finite ? value_top / 127.0f : 0.0f;
}

void store_kv(const KvLayout& layout, uint8_t* tile, int lane, const float* key, const float* value) {
  if (layout.encoding == KvEncoding::kHalf) {
    store_half_kv(layout, tile, lane, key, value);
  } else {
    store_int8_kv(layout, tile, lane, key, value);
  }
}

// The positions that any of the queries sees.
struct Span {
  int begin, end;
};
inline Span visible_to_any(const Attention& a) {
  Span span = {a.begins[0], a.ends[0]};
  for (int i = 1; i < a.num_queries; i++) {
    span.begin = smaller(span.begin, a.begins[i]);
    span.end = larger(span.end, a.ends[i]);
  }
  return span;
}

// How many vectors of sums there are of each query, to share what is broadcast: two if registers hold them.
template <int num_queries>
constexpr int kSumsPerQuery = 2 * num_queries <= kVecSums ? 2 : 1;

// scores[query][position] = query . key, positions in lanes, dimension after dimension.
template <class Kv, int num_queries, int num_tiles>
void score_tiles(const Attention& a, int first_query, int tile, int end) {
  const float* const* queries = a.queries + first_query;
  const typename Kv::Element* keys[num_tiles];
  const uint8_t* next[num_tiles];
  Vec total[num_queries][num_tiles];
  for (int t = 0; t < num_tiles; t++) {
    keys[t] = keys_of<Kv>(a.tiles[tile + t]);
    next[t] = a.tiles[smaller(tile + t + num_tiles, end - 1)];
    for (int q = 0; q < num_queries; q++) total[q][t] = zeros();
  }
  for (int d = 0; d < a.layout.head_dim; d++) {
    const size_t ahead = d * kTilePositions * sizeof(typename Kv::Element);
    for (int t = 0; t < num_tiles && ahead % kVectorBytes == 0; t++) __builtin_prefetch(next[t] + ahead);
    Vec key[num_tiles];
    for (int t = 0; t < num_tiles; t++) key[t] = Kv::load_sixteen(keys[t] + d * kTilePositions);
    for (int q = 0; q < num_queries; q++) {
      const Vec query = all(queries[q][d]);
      for (int t = 0; t < num_tiles; t++) total[q][t] = fma(query, key[t], total[q][t]);
    }
  }
  for (int t = 0; t < num_tiles; t++) {
    for (int q = 0; q < num_queries; q++) {
      if (Kv::kHasScales) total[q][t] = mul(total[q][t], load(key_scales(a.layout, a.tiles[tile + t])));
      store(a.scores + (first_query + q) * a.score_stride + (tile + t) * kTilePositions, total[q][t]);
    }
  }
}

template <class Kv, int num_queries>
void score_span(const Attention& a, int first_query, Span span) {
  const int end = (span.end + kTilePositions - 1) / kTilePositions;
  int tile = span.begin / kTilePositions;
  constexpr int kAtOnce = kSumsPerQuery<num_queries>;
  for (; tile + kAtOnce <= end; tile += kAtOnce) score_tiles<Kv, num_queries, kAtOnce>(a, first_query, tile, end);
  if (tile < end) score_tiles<Kv, num_queries, 1>(a, first_query, tile, end);
}

// Scores to weights e^(score - largest), zero where the query does not see; returns 1 / their sum, NaN if a score that
// it sees is not finite.
template <class Kv>
float soften(const Attention& a, int query, Span span) {
  float* scores = a.scores + query * a.score_stride;
  const int begin = a.begins[query], end = a.ends[query];
  const int first_tile = span.begin / kTilePositions, last_tile = (span.end - 1) / kTilePositions;
  Vec tops = all(kNegativeInfinity), poison = zeros();
  for (int tile = begin / kTilePositions; tile * kTilePositions < end; tile++) {
    const int start = tile * kTilePositions, from = larger(0, begin - start), to = smaller(kTilePositions, end - start);
    const Vec score = load(scores + start), seen = keep_lanes(score, from, to, kNegativeInfinity);
    store(scores + start, seen);
    tops = max(tops, seen);
    poison = fma(keep_lanes(score, from, to, 0.0f), zeros(), poison);
  }
  const Vec top = all(largest(tops));
  Vec total = poison;
  for (int tile = first_tile; tile <= last_tile; tile++) {
    const int start = tile * kTilePositions;
    const int from = larger(0, begin - start), to = smaller(kTilePositions, end - start);
    Vec weight = zeros();
    if (from < to) weight = keep_lanes(exponential(sub(load(scores + start), top)), from, to, 0.0f);
    total = add(total, weight);
    if (Kv::kHasScales) weight = mul(weight, load(value_scales(a.layout, a.tiles[tile])));
    store(scores + start, weight);
  }
  return 1.0f / sum(total);
}

// outputs[query] = factor * the sum of weight * value, position after position, for some dimensions. The sums stay in
// registers while the values stream by.
template <class Kv, int num_queries, int num_vecs>
void mix_dims(const Attention& a, int first_query, Span span, int first_dim, const float* factors) {
  const float* weights = a.scores + first_query * a.score_stride;
  const size_t stride = a.layout.value_stride();
  const int last_tile = (span.end - 1) / kTilePositions;
  Vec total[num_queries][num_vecs];
  for (int q = 0; q < num_queries; q++) {
    for (int v = 0; v < num_vecs; v++) total[q][v] = zeros();
  }
  for (int position = span.begin; position < span.end;) {
    const int tile = position / kTilePositions, end = smaller(span.end, (tile + 1) * kTilePositions);
    const auto* values = keys_of<Kv>(a.tiles[tile] + a.layout.value_offset()) + first_dim;
    const auto* next = keys_of<Kv>(a.tiles[smaller(tile + 1, last_tile)] + a.layout.value_offset()) + first_dim;
    for (; position < end; position++) {
      const size_t row = position % kTilePositions * stride;
      __builtin_prefetch(next + row);
      Vec value[num_vecs];
      for (int v = 0; v < num_vecs; v++) value[v] = Kv::load_sixteen(values + row + v * kVecLanes);
      for (int q = 0; q < num_queries; q++) {
        const Vec weight = all(weights[q * a.score_stride + position]);
        for (int v = 0; v < num_vecs; v++) total[q][v] = fma(weight, value[v], total[q][v]);
      }
    }
  }
  for (int q = 0; q < num_queries; q++) {
    const Vec factor = all(factors[first_query + q]);
    for (int v = 0; v < num_vecs; v++) {
      const int dim = first_dim + v * kVecLanes;
      store_up_to(a.outputs[first_query + q] + dim, mul(total[q][v], factor), a.layout.head_dim - dim);
    }
  }
}

template <class Kv, int num_queries>
void mix_span(const Attention& a, int first_query, Span span, const float* factors) {
  constexpr int kAtOnce = kSumsPerQuery<num_queries>;
  int dim = 0;
  for (; dim + kAtOnce * kVecLanes <= a.layout.value_stride(); dim += kAtOnce * kVecLanes) {
    mix_dims<Kv, num_queries, kAtOnce>(a, first_query, span, dim, factors);
  }
  if (dim < a.layout.value_stride()) mix_dims<Kv, num_queries, 1>(a, first_query, span, dim, factors);
}

constexpr int kQueriesAtOnce = kVecSums < 8 ? kVecSums : 8;

template <class Kv, int num_queries = kQueriesAtOnce>
void attend_to_block(const Attention& a, int first_query, int wanted, Span span, float* factors) {
  if constexpr (num_queries > 0) {
    if (wanted != num_queries) return attend_to_block<Kv, num_queries - 1>(a, first_query, wanted, span, factors);
    score_span<Kv, num_queries>(a, first_query, span);
    for (int q = first_query; q < first_query + num_queries; q++) factors[q] = soften<Kv>(a, q, span);
    mix_span<Kv, num_queries>(a, first_query, span, factors);
  }
}

template <class Kv>
void attend_with(const Attention& a) {
  const Span span = visible_to_any(a);
  float factors[kMaxQueries];
  const int num_blocks = (a.num_queries + kQueriesAtOnce - 1) / kQueriesAtOnce;
  for (int block = 0, query = 0; block < num_blocks; block++) {
    const int height = (a.num_queries - query + num_blocks - block - 1) / (num_blocks - block);
    attend_to_block<Kv>(a, query, height, span, factors);
    query += height;
  }
}

void attend(const Attention& a) {
  if (a.layout.encoding == KvEncoding::kHalf) {
    attend_with<HalfKv>(a);
  } else {
    attend_with<Int8Kv>(a);
  }
}

}  // namespace
}  // namespace socle
