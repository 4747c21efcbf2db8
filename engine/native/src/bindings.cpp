// The Python module `socle_native`: weights as arrays in, steps, logits as arrays out.
//
// Arrays are read where they lie and kept alive by what was made of them. Knows no files and no names of tensors.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include "inputs.h"
#include "machine.h"
#include "model.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace socle {

void bind_kernels(nb::module_& m);  // kernel_bindings.cpp

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Matrix matrix_of(const Bytes& data, int rows, int inputs, Encoding encoding) {
  return matrix_of(ByteView(data.data(), data.size()), rows, inputs, encoding);
}

// Arrays that live as long as what points into them.
struct Kept {
  std::vector<nb::object> arrays;
  template <class Array>
  const Array& keep(const Array& array) {
    arrays.push_back(nb::cast(array));
    return array;
  }
};

struct PyWeights {
  Weights weights;
  Kept kept;

  explicit PyWeights(int num_layers) { weights.layers.resize(num_layers); }
  void set_linear(int layer, int linear, const Bytes& data, int rows, int inputs, int bits) {
    weights.layers.at(layer).linears[linear] = matrix_of(kept.keep(data), rows, inputs, encoding_of(bits));
  }
  // `low` is the second plane of a matrix in two planes of 4 bits.
  Planes planes_of(const Bytes& high, std::optional<Bytes> low, int rows, int inputs, int bits) {
    const Encoding encoding = encoding_of(bits);
    Planes planes = {matrix_of(kept.keep(high), rows, inputs, encoding), {}};
    if (low) planes.low = matrix_of(kept.keep(*low), rows, inputs, encoding);
    return planes;
  }
  void set_embedding(const Bytes& high, std::optional<Bytes> low, int rows, int inputs, int bits) {
    weights.embedding = planes_of(high, low, rows, inputs, bits);
  }
  void set_head(const Bytes& high, std::optional<Bytes> low, int rows, int inputs, int bits) {
    weights.head = planes_of(high, low, rows, inputs, bits);
  }
  void set_final_norm(const Floats& norm) { weights.final_norm = kept.keep(norm).data(); }
  void set_norms(int layer, const Floats& input, const Floats& mlp, std::optional<Floats> query, std::optional<Floats> key) {
    Layer& target = weights.layers.at(layer);
    target.input_norm = kept.keep(input).data();
    target.mlp_norm = kept.keep(mlp).data();
    target.query_norm = query ? kept.keep(*query).data() : nullptr;
    target.key_norm = key ? kept.keep(*key).data() : nullptr;
  }
  void set_biases(int layer, const Floats& query, const Floats& key, const Floats& value) {
    const float* biases[] = {kept.keep(query).data(), kept.keep(key).data(), kept.keep(value).data()};
    for (int i = 0; i < 3; i++) weights.layers.at(layer).biases[i] = biases[i];
  }
};

struct PyAdapter {
  Adapter adapter;
  Kept kept;

  explicit PyAdapter(int num_layers) { adapter.modules.resize(static_cast<size_t>(num_layers) * kNumLinears); }
  void set(int layer, int linear, const Bytes& a, const Bytes& b, int rank, int rows, int inputs, int bits) {
    LowRank& module = adapter.modules.at(static_cast<size_t>(layer) * kNumLinears + linear);
    module.a = matrix_of(kept.keep(a), rank, inputs, encoding_of(bits));
    module.b = matrix_of(kept.keep(b), rows, rank, bits == 32 ? Encoding::kFloat32 : Encoding::kLowRank);
  }
};

struct PyModel {
  nb::object weights;
  Model model;
};

std::vector<Segment> segments_of(const nb::list& list) {
  std::vector<Segment> segments;
  for (const nb::handle item : list) {
    const auto parts = nb::cast<nb::tuple>(item);
    Segment segment;
    segment.state = nb::cast<KvState*>(parts[0]);
    const auto tokens = nb::cast<Ints>(parts[1]), logit_rows = nb::cast<Ints>(parts[4]);
    segment.token_ids = tokens.data();
    segment.num_rows = static_cast<int>(tokens.size());
    if (!parts[2].is_none()) {
      const auto parents = nb::cast<Ints>(parts[2]);
      if (parents.size() != tokens.size()) throw std::invalid_argument("a tree has a parent for each token");
      segment.parents = parents.data();
    }
    if (!parts[3].is_none()) segment.adapter = &nb::cast<PyAdapter*>(parts[3])->adapter;
    segment.logit_rows = logit_rows.data();
    segment.num_logit_rows = static_cast<int>(logit_rows.size());
    segments.push_back(segment);
  }
  return segments;
}

using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>, nb::device::cpu>;

// Logits [rows asked for, vocab_size], a view that the next step overwrites.
Logits run_step(const nb::object& self, const nb::list& list) {
  Model& model = nb::cast<PyModel&>(self).model;
  const std::vector<Segment> segments = segments_of(list);  // the list keeps the arrays alive
  size_t num_rows = 0;
  for (const Segment& segment : segments) num_rows += segment.num_logit_rows;
  const float* logits;
  {
    nb::gil_scoped_release release;
    logits = model.step(segments);
  }
  const size_t shape[] = {num_rows, static_cast<size_t>(model.architecture().vocab_size)};
  const int64_t strides[] = {static_cast<int64_t>(model.logit_stride()), 1};
  return Logits(const_cast<float*>(logits), 2, shape, self, strides);
}

using BlockBytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>, nb::device::cpu>;

// A view [block_bytes] of a block, which it keeps alive.
BlockBytes bytes_of(const nb::object& self) {
  const KvBlock& block = nb::cast<const KvBlock&>(self);
  const size_t shape[] = {block.bytes.size()};
  return BlockBytes(block.bytes.data(), 1, shape, self);
}

using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int sample(const Row& logits, const Ints& seen, float repetition_penalty, double temperature, int top_k, double top_p,
           double min_p, double uniform, const std::string& instruction_set) {
  const Sampling sampling = {repetition_penalty, temperature, top_k, top_p, min_p};
  const FloatView row = {logits.data(), logits.size()};
  const IntView seen_ids = {seen.data(), seen.size()};
  nb::gil_scoped_release release;
  return next_token(kernels_of(instruction_set), row, seen_ids, sampling, uniform);
}

}  // namespace
}  // namespace socle

NB_MODULE(socle_native, m) {
  using namespace socle;

  m.attr("BLOCK_TOKENS") = KvShape::kBlockPositions;
  m.def("instruction_sets", &supported_kernels, "Those that run on this machine, fastest first.");
  nb::module_ kernels = m.def_submodule("kernels", "Each kernel by itself, for tests.");
  bind_kernels(kernels);

  m.def("next_token", &sample, "logits"_a, "seen_token_ids"_a, nb::kw_only(), "repetition_penalty"_a, "temperature"_a,
        "top_k"_a, "top_p"_a, "min_p"_a, "uniform"_a, "instruction_set"_a = "auto",
        "The next token of a row of logits, as engine.sampling has it; -1 if they are not finite.");

  m.def("read_bandwidth", &read_bandwidth, "num_threads"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Bytes per second that so many threads read together from memory.");
  m.def(
      "dot_peak", [](int num_threads) { return dot_peak(kernels_of("auto"), num_threads); }, "num_threads"_a,
      nb::call_guard<nb::gil_scoped_release>(), "Int8 products per second in registers; 0 where it is not measured.");

  nb::class_<Governor>(m, "Governor", "What keeps to a duty cycle, for tests with a clock of their own.")
      .def(nb::init<double>(), "duty_cycle"_a)
      .def("rest_s", &Governor::rest_s, "passed_s"_a, "worked_s"_a);

  nb::class_<PyWeights>(m, "Weights")
      .def(nb::init<int>(), "num_layers"_a)
      .def("set_linear", &PyWeights::set_linear)
      .def("set_embedding", &PyWeights::set_embedding, "high"_a, "low"_a.none(), "rows"_a, "inputs"_a, "bits"_a)
      .def("set_head", &PyWeights::set_head, "high"_a, "low"_a.none(), "rows"_a, "inputs"_a, "bits"_a)
      .def("set_final_norm", &PyWeights::set_final_norm)
      .def("set_norms", &PyWeights::set_norms, "layer"_a, "input"_a, "mlp"_a, "query"_a.none(), "key"_a.none())
      .def("set_biases", &PyWeights::set_biases);

  nb::class_<PyAdapter>(m, "Adapter").def(nb::init<int>(), "num_layers"_a).def("set", &PyAdapter::set);

  nb::class_<KvBlock>(m, "KvBlock", "Keys and values of some positions, which states share.")
      .def_prop_ro("bytes", &bytes_of)
      .def_prop_ro("resident_bytes", [](const KvBlock& self) { return self.bytes.resident_bytes(); });

  nb::class_<KvState>(m, "KvState")
      .def_prop_ro("num_tokens", &KvState::num_tokens)
      .def_prop_ro("max_tokens", &KvState::max_tokens)
      .def_prop_ro("size_bytes", &KvState::size_bytes)
      .def_prop_ro("resident_bytes", &KvState::resident_bytes)
      .def("block", &KvState::block, "index"_a)
      .def("take", &KvState::take)
      .def("fork", &KvState::fork, "max_tokens"_a)
      .def("rewind", &KvState::rewind)
      .def("accept", [](KvState& self, const std::vector<int>& rows) {
        self.accept(rows.data(), static_cast<int>(rows.size()));
      });

  nb::class_<PyModel>(m, "Model")
      .def(
          "__init__",
          [](PyModel* self, nb::object weights, const nb::dict& architecture, const std::vector<double>& rope_frequencies,
             const std::string& instruction_set, int num_threads, std::vector<int> cpus, double duty_cycle,
             int max_context_tokens, int max_step_rows, int max_rank, bool is_kv_int8) {
            const auto number = [&](const char* name) { return nb::cast<int>(architecture[name]); };
            Architecture shape;
            shape.hidden_size = number("hidden_size");
            shape.intermediate_size = number("intermediate_size");
            shape.num_layers = number("num_hidden_layers");
            shape.num_heads = number("num_attention_heads");
            shape.num_kv_heads = number("num_key_value_heads");
            shape.head_dim = number("head_dim");
            shape.vocab_size = number("vocab_size");
            shape.sliding_window = number("sliding_window");
            shape.norm_eps = nb::cast<float>(architecture["rms_norm_eps"]);
            shape.rope_frequencies = rope_frequencies;
            Settings settings;
            settings.kernels = &kernels_of(instruction_set);
            settings.num_threads = num_threads;
            settings.cpus = std::move(cpus);
            settings.duty_cycle = duty_cycle;
            settings.max_context_tokens = max_context_tokens;
            settings.max_step_rows = max_step_rows;
            settings.max_rank = max_rank;
            settings.kv_encoding = is_kv_int8 ? KvEncoding::kInt8 : KvEncoding::kHalf;
            Weights copied = nb::cast<PyWeights&>(weights).weights;
            new (self) PyModel{std::move(weights), Model(std::move(shape), std::move(copied), std::move(settings))};
          },
          nb::kw_only(), "weights"_a, "architecture"_a, "rope_frequencies"_a, "instruction_set"_a, "num_threads"_a,
          "cpus"_a, "duty_cycle"_a, "max_context_tokens"_a, "max_step_rows"_a, "max_rank"_a, "is_kv_int8"_a)
      .def_prop_ro("instruction_set", [](const PyModel& self) { return self.model.settings().kernels->name; })
      .def("state_bytes",
           [](const PyModel& self, int max_tokens) {
             return KvShape::blocks_for(max_tokens) * self.model.kv_shape().block_bytes();
           })
      .def_prop_ro("resident_scratch_bytes", [](const PyModel& self) { return self.model.resident_scratch_bytes(); })
      .def(
          "scratch_bytes",
          [](const PyModel& self, int rows, int logit_rows) { return self.model.scratch_bytes(rows, logit_rows); }, "rows"_a,
          "logit_rows"_a)
      .def(
          "new_state",
          [](const PyModel& self, int max_tokens, KvBlocks blocks, int num_tokens) {
            return std::make_unique<KvState>(self.model.kv_shape(), max_tokens, std::move(blocks), num_tokens);
          },
          "max_tokens"_a, "blocks"_a = KvBlocks(), "num_tokens"_a = 0)
      .def(
          "block_from",
          [](const PyModel& self, const Bytes& bytes) {
            return block_of(self.model.kv_shape(), ByteView(bytes.data(), bytes.size()));
          },
          "bytes"_a)
      .def("step", [](nb::object self, const nb::list& segments) { return run_step(self, segments); });
}
