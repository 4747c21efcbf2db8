// The program `socle_runner`: the core for another process, on whatever processor or emulator the program runs on.
//
// Reads requests (messages.h) from its input and answers each on its output with "ok" and values, or with "error" and a
// text. The commands are those of the Python module: kernels one by one, and weights, adapters, models and states that
// are named by numbers. For tests; products load the Python module.
#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>

#include "kernel_calls.h"
#include "messages.h"
#include "model.h"
#include "sampling.h"

namespace socle {
namespace {

// ---- what requests make and name

struct Object {
  virtual ~Object() = default;
};

// Arrays that live as long as what points into them.
struct Kept {
  std::vector<std::vector<uint8_t>> arrays;

  template <class T>
  View<T> keep(Message& request) {
    arrays.push_back(request.take_array<T>());
    return {reinterpret_cast<const T*>(arrays.back().data()), arrays.back().size() / sizeof(T)};
  }
  const float* keep_or_null(Message& request) { return request.skip_nothing() ? nullptr : keep<float>(request).data; }
};

struct KeptWeights : Object {
  Weights weights;
  Kept kept;
};
struct KeptAdapter : Object {
  Adapter adapter;
  Kept kept;
};
struct KeptModel : Object {
  KeptModel(Architecture architecture, Weights weights, Settings settings)
      : model(std::move(architecture), std::move(weights), std::move(settings)) {}
  Model model;
};
struct KeptBlock : Object {
  explicit KeptBlock(std::shared_ptr<KvBlock> block) : block(std::move(block)) {}
  std::shared_ptr<KvBlock> block;
};
struct KeptState : Object {
  explicit KeptState(std::unique_ptr<KvState> state) : state(std::move(state)) {}
  std::unique_ptr<KvState> state;
};

class Objects {
 public:
  int64_t add(std::unique_ptr<Object> object) {
    objects_[++last_number_] = std::move(object);
    return last_number_;
  }
  template <class T>
  T& named_by(Message& request) {
    const auto found = objects_.find(request.integer());
    T* object = found == objects_.end() ? nullptr : dynamic_cast<T*>(found->second.get());
    expect_that(object, "no such object");
    return *object;
  }
  void drop(int64_t number) { objects_.erase(number); }

 private:
  std::map<int64_t, std::unique_ptr<Object>> objects_;
  int64_t last_number_ = 0;
};

// ---- kernels

template <class T>
void add_vector(Message& answer, const std::vector<T>& values) {
  answer.add_array(View<T>(values));
}

template <class T>
View<T> array_or_none(Message& request) {
  return request.skip_nothing() ? View<T>() : request.array<T>();
}

void run_quantise(const Kernels& kernels, Message& request, Message& answer) {
  const FloatView x = request.array<float>();
  const QuantisedRows rows = quantise(kernels, x, request.small_integer());
  add_vector(answer, rows.values);
  add_vector(answer, rows.tails);
}

void run_product(const Kernels& kernels, Message& request, Message& answer) {
  const Encoding encoding = encoding_named(request.text());
  const ByteView stored = request.array<uint8_t>();
  const int rows = request.small_integer(), inputs = request.small_integer();
  const ProductInput input = {request.small_integer(), array_or_none<float>(request), array_or_none<int8_t>(request),
                              array_or_none<int32_t>(request)};
  const IntView part = request.array<int32_t>();
  expect_size(part.size, 4, "the part");
  const ProductPart bounds = {part.data[0], part.data[1], part.data[2], part.data[3]};
  const FloatView start = array_or_none<float>(request);
  add_vector(answer, product(kernels, matrix_of(stored, rows, inputs, encoding), input, bounds, start));
}

void run_rms_norm(const Kernels& kernels, Message& request, Message& answer) {
  const FloatView x = request.array<float>(), weight = request.array<float>();
  add_vector(answer, rms_norm(kernels, x, weight, static_cast<float>(request.number())));
}

void run_rotate(const Kernels& kernels, Message& request, Message& answer) {
  const FloatView head = request.array<float>(), cos = request.array<float>(), sin = request.array<float>();
  add_vector(answer, rotate(kernels, head, cos, sin));
}

void run_scale(const Kernels& kernels, Message& request, Message& answer) {
  const FloatView x = request.array<float>();
  add_vector(answer, scale(kernels, x, static_cast<float>(request.number())));
}

template <std::vector<float> (*call)(const Kernels&, FloatView, FloatView)>
void run_pair(const Kernels& kernels, Message& request, Message& answer) {
  const FloatView x = request.array<float>(), y = request.array<float>();
  add_vector(answer, call(kernels, x, y));
}

void run_expose(const Kernels& kernels, Message& request, Message& answer) {
  add_vector(answer, expose(kernels, request.array<float>()));
}

void run_tile_tops(const Kernels& kernels, Message& request, Message& answer) {
  add_vector(answer, tile_tops(kernels, request.array<float>()));
}

void run_next_token(const Kernels& kernels, Message& request, Message& answer) {
  const FloatView logits = request.array<float>();
  const IntView seen = request.array<int32_t>();
  Sampling sampling;
  sampling.repetition_penalty = static_cast<float>(request.number());
  sampling.temperature = request.number();
  sampling.top_k = request.small_integer();
  sampling.top_p = request.number();
  sampling.min_p = request.number();
  answer.add_integer(next_token(kernels, logits, seen, sampling, request.number()));
}

void run_attend(const Kernels& kernels, Message& request, Message& answer) {
  const CachedHead head = {kv_encoding_named(request.text()), request.small_integer(), request.array<float>(),
                           request.array<float>()};
  const FloatView queries = request.array<float>();
  const IntView begins = request.array<int32_t>(), ends = request.array<int32_t>();
  add_vector(answer, attend(kernels, head, queries, begins, ends));
}

void run_store_kv(const Kernels& kernels, Message& request, Message& answer) {
  add_vector(answer, store_kv(kernels, {kv_encoding_named(request.text()), request.small_integer(),
                                        request.array<float>(), request.array<float>()}));
}

// ---- weights and adapters

Matrix keep_matrix(Kept& kept, Message& request, Encoding encoding, int rows, int inputs) {
  return matrix_of(kept.keep<uint8_t>(request), rows, inputs, encoding);
}

// Sizes, then one matrix, or two planes, or one and nothing.
Planes keep_planes(Kept& kept, Message& request) {
  const Encoding encoding = encoding_of(request.small_integer());
  const int rows = request.small_integer(), inputs = request.small_integer();
  Planes planes = {keep_matrix(kept, request, encoding, rows, inputs), {}};
  if (!request.skip_nothing()) planes.low = keep_matrix(kept, request, encoding, rows, inputs);
  return planes;
}

void new_weights(Objects& objects, Message& request, Message& answer) {
  auto weights = std::make_unique<KeptWeights>();
  weights->weights.layers.resize(request.small_integer());
  answer.add_integer(objects.add(std::move(weights)));
}

void set_linear(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptWeights>(request);
  Layer& layer = target.weights.layers.at(request.small_integer());
  const int linear = request.small_integer();
  expect_that(0 <= linear && linear < kNumLinears, "a layer has no such matrix");
  const Encoding encoding = encoding_of(request.small_integer());
  const int rows = request.small_integer(), inputs = request.small_integer();
  layer.linears[linear] = keep_matrix(target.kept, request, encoding, rows, inputs);
}

void set_embedding(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptWeights>(request);
  target.weights.embedding = keep_planes(target.kept, request);
}

void set_head(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptWeights>(request);
  target.weights.head = keep_planes(target.kept, request);
}

void set_final_norm(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptWeights>(request);
  target.weights.final_norm = target.kept.keep<float>(request).data;
}

void set_norms(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptWeights>(request);
  Layer& layer = target.weights.layers.at(request.small_integer());
  layer.input_norm = target.kept.keep<float>(request).data;
  layer.mlp_norm = target.kept.keep<float>(request).data;
  layer.query_norm = target.kept.keep_or_null(request);
  layer.key_norm = target.kept.keep_or_null(request);
}

void set_biases(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptWeights>(request);
  Layer& layer = target.weights.layers.at(request.small_integer());
  for (const float*& bias : layer.biases) bias = target.kept.keep<float>(request).data;
}

void new_adapter(Objects& objects, Message& request, Message& answer) {
  auto adapter = std::make_unique<KeptAdapter>();
  adapter->adapter.modules.resize(static_cast<size_t>(request.small_integer()) * kNumLinears);
  answer.add_integer(objects.add(std::move(adapter)));
}

void set_module(Objects& objects, Message& request, Message&) {
  auto& target = objects.named_by<KeptAdapter>(request);
  const size_t first = static_cast<size_t>(request.small_integer()) * kNumLinears;
  LowRank& module = target.adapter.modules.at(first + request.small_integer());
  const Encoding encoding = encoding_of(request.small_integer());
  const int rank = request.small_integer(), rows = request.small_integer(), inputs = request.small_integer();
  const bool is_float = encoding == Encoding::kFloat32;
  module.a = keep_matrix(target.kept, request, encoding, rank, inputs);
  module.b = keep_matrix(target.kept, request, is_float ? encoding : Encoding::kLowRank, rows, rank);
}

// ---- models, states and steps

Architecture read_architecture(Message& request) {
  Architecture shape;
  for (int* size : {&shape.hidden_size, &shape.intermediate_size, &shape.num_layers, &shape.num_heads,
                    &shape.num_kv_heads, &shape.head_dim, &shape.vocab_size, &shape.sliding_window}) {
    *size = request.small_integer();
  }
  shape.norm_eps = static_cast<float>(request.number());
  const View<double> frequencies = request.array<double>();
  shape.rope_frequencies.assign(frequencies.data, frequencies.data + frequencies.size);
  return shape;
}

void new_model(Objects& objects, Message& request, Message& answer) {
  const Weights& weights = objects.named_by<KeptWeights>(request).weights;
  Architecture shape = read_architecture(request);
  Settings settings;
  settings.kernels = &kernels_of(request.text());
  settings.num_threads = request.small_integer();
  settings.duty_cycle = request.number();
  settings.max_context_tokens = request.small_integer();
  settings.max_step_rows = request.small_integer();
  settings.max_rank = request.small_integer();
  settings.kv_encoding = kv_encoding_named(request.text());
  answer.add_text(settings.kernels->name);
  answer.add_integer(objects.add(std::make_unique<KeptModel>(std::move(shape), weights, std::move(settings))));
}

int64_t add_state(Objects& objects, std::unique_ptr<KvState> state) {
  return objects.add(std::make_unique<KeptState>(std::move(state)));
}

int64_t add_block(Objects& objects, std::shared_ptr<KvBlock> block) {
  return objects.add(std::make_unique<KeptBlock>(std::move(block)));
}

void new_state(Objects& objects, Message& request, Message& answer) {
  const Model& model = objects.named_by<KeptModel>(request).model;
  const int max_tokens = request.small_integer(), num_tokens = request.small_integer();
  KvBlocks blocks(request.small_integer());
  for (auto& block : blocks) block = objects.named_by<KeptBlock>(request).block;
  answer.add_integer(
      add_state(objects, std::make_unique<KvState>(model.kv_shape(), max_tokens, std::move(blocks), num_tokens)));
}

void fork_state(Objects& objects, Message& request, Message& answer) {
  const KvState& state = *objects.named_by<KeptState>(request).state;
  answer.add_integer(add_state(objects, state.fork(request.small_integer())));
}

void block_of_state(Objects& objects, Message& request, Message& answer) {
  const KvState& state = *objects.named_by<KeptState>(request).state;
  answer.add_integer(add_block(objects, state.block(request.small_integer())));
}

void take_blocks(Objects& objects, Message& request, Message& answer) {
  for (auto& block : objects.named_by<KeptState>(request).state->take()) {
    answer.add_integer(add_block(objects, std::move(block)));
  }
}

void block_from(Objects& objects, Message& request, Message& answer) {
  const Model& model = objects.named_by<KeptModel>(request).model;
  answer.add_integer(add_block(objects, block_of(model.kv_shape(), request.array<uint8_t>())));
}

void block_bytes(Objects& objects, Message& request, Message& answer) {
  const KvBlock& block = *objects.named_by<KeptBlock>(request).block;
  answer.add_array(ByteView(block.bytes.data(), block.bytes.size()));
}

void state_bytes(Objects& objects, Message& request, Message& answer) {
  const KvShape& shape = objects.named_by<KeptModel>(request).model.kv_shape();
  answer.add_integer(KvShape::blocks_for(request.small_integer()) * shape.block_bytes());
}

void describe_state(Objects& objects, Message& request, Message& answer) {
  const KvState& state = *objects.named_by<KeptState>(request).state;
  answer.add_integer(state.num_tokens());
  answer.add_integer(state.max_tokens());
  answer.add_integer(state.size_bytes());
}

void rewind_state(Objects& objects, Message& request, Message&) {
  KvState& state = *objects.named_by<KeptState>(request).state;
  state.rewind(request.small_integer());
}

void accept_rows(Objects& objects, Message& request, Message&) {
  KvState& state = *objects.named_by<KeptState>(request).state;
  const IntView rows = request.array<int32_t>();
  state.accept(rows.data, static_cast<int>(rows.size));
}

Segment read_segment(Objects& objects, Message& request) {
  Segment segment;
  segment.state = objects.named_by<KeptState>(request).state.get();
  const IntView tokens = request.array<int32_t>();
  segment.token_ids = tokens.data;
  segment.num_rows = static_cast<int>(tokens.size);
  if (!request.skip_nothing()) {
    const IntView parents = request.array<int32_t>();
    expect_size(parents.size, tokens.size, "parents");
    segment.parents = parents.data;
  }
  if (!request.skip_nothing()) segment.adapter = &objects.named_by<KeptAdapter>(request).adapter;
  const IntView logit_rows = request.array<int32_t>();
  segment.logit_rows = logit_rows.data;
  segment.num_logit_rows = static_cast<int>(logit_rows.size);
  return segment;
}

// Answers logits [sum of logit rows, vocab_size].
void run_step(Objects& objects, Message& request, Message& answer) {
  Model& model = objects.named_by<KeptModel>(request).model;
  std::vector<Segment> segments(request.small_integer());
  size_t num_rows = 0;
  for (Segment& segment : segments) {
    segment = read_segment(objects, request);
    num_rows += segment.num_logit_rows;
  }
  const float* logits = model.step(segments);
  const size_t vocab_size = model.architecture().vocab_size;
  std::vector<float> packed;
  for (size_t row = 0; row < num_rows; row++) {
    const float* first = logits + row * model.logit_stride();
    packed.insert(packed.end(), first, first + vocab_size);
  }
  add_vector(answer, packed);
}

// ---- the loop

using KernelCommand = void (*)(const Kernels&, Message&, Message&);
const std::map<std::string, KernelCommand> kKernelCommands = {
    {"quantise", run_quantise}, {"product", run_product},       {"rms_norm", run_rms_norm},
    {"rotate", run_rotate},     {"scale", run_scale},           {"add", run_pair<add>},
    {"gate", run_pair<gate>},   {"store_kv", run_store_kv},     {"attend", run_attend},
    {"expose", run_expose},     {"tile_tops", run_tile_tops},   {"next_token", run_next_token},
};

using ObjectCommand = void (*)(Objects&, Message&, Message&);
const std::map<std::string, ObjectCommand> kObjectCommands = {
    {"new_weights", new_weights},
    {"set_linear", set_linear},
    {"set_embedding", set_embedding},
    {"set_head", set_head},
    {"set_final_norm", set_final_norm},
    {"set_norms", set_norms},
    {"set_biases", set_biases},
    {"new_adapter", new_adapter},
    {"set_module", set_module},
    {"new_model", new_model},
    {"new_state", new_state},
    {"fork", fork_state},
    {"block", block_of_state},
    {"take", take_blocks},
    {"block_from", block_from},
    {"block_bytes", block_bytes},
    {"state_bytes", state_bytes},
    {"describe_state", describe_state},
    {"rewind", rewind_state},
    {"accept", accept_rows},
    {"step", run_step},
    {"drop", [](Objects& objects, Message& request, Message&) { objects.drop(request.integer()); }},
    {"instruction_sets",
     [](Objects&, Message&, Message& answer) {
       for (const std::string& name : supported_kernels()) answer.add_text(name);
     }},
    {"block_tokens", [](Objects&, Message&, Message& answer) { answer.add_integer(KvShape::kBlockPositions); }},
};

void run_command(Objects& objects, Message& request, Message& answer) {
  if (const auto found = kKernelCommands.find(request.name()); found != kKernelCommands.end()) {
    return found->second(kernels_of(request.text()), request, answer);
  }
  const auto found = kObjectCommands.find(request.name());
  expect_that(found != kObjectCommands.end(), "no such command");
  found->second(objects, request, answer);
}

Message answer_to(Objects& objects, Message& request) {
  Message answer("ok");
  try {
    run_command(objects, request, answer);
    request.expect_end();
    return answer;
  } catch (const std::logic_error& error) {  // what bindings turn into ValueError and IndexError
    answer = Message("error");
    answer.add_text(error.what());
    return answer;
  }
}

}  // namespace
}  // namespace socle

int main() {
  using namespace socle;
  try {
    Objects objects;
    for (Message request(""); Message::read(stdin, &request);) answer_to(objects, request).write(stdout);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "socle_runner: %s\n", error.what());
    return 2;
  }
}
