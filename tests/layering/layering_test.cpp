// Holds the direction of includes that docs/architecture.md draws. Every #include of our own headers is read from the
// sources; what a layer may include is listed once, in kMayInclude.
#include <gmock/gmock.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::IsEmpty;

// Layer -> other layers whose headers it may include. "saccade" is include/saccade, the public API. A folder
// under src/models is a layer of its own, "models/<name>": it knows the shared headers of src/models, no other model.
const std::map<std::string, std::set<std::string>> kMayInclude = {
    {"saccade", {}},
    {"base", {}},
    {"tensor", {"base"}},
    {"text", {"base", "tensor"}},
    {"media", {"base", "tensor"}},
    {"weights", {"base", "tensor", "kernels"}},
    {"kernels", {"base", "tensor"}},
    {"ops", {"base", "tensor", "kernels"}},
    {"models", {"saccade", "base", "tensor", "text", "media", "weights", "ops"}},
    {"engine", {"saccade", "base", "tensor", "text", "media", "weights", "ops", "models"}},
    {"apps", {"saccade", "base", "tensor", "text", "media", "weights", "kernels", "ops", "models", "engine"}},
};

// "models/qwen2_5_vl/config.h" -> "models/qwen2_5_vl", "models/model.h" -> "models", "ops/ops.h" -> "ops".
std::string layer_of(const fs::path& path) {
  std::vector<std::string> parts;
  for (const auto& part : path) parts.push_back(part.string());
  if (parts.size() >= 3 && parts[0] == "models") return "models/" + parts[1];
  return parts[0];
}

// Files of src/models itself (the registry) may include every model; a model may include src/models itself.
bool allowed(const std::string& from, const std::string& to) {
  if (from == to) return true;
  const bool from_model = from.starts_with("models/");
  const bool to_model = to.starts_with("models/");
  if (from_model && to_model) return false;
  if (from_model) return to == "models" || kMayInclude.at("models").contains(to);
  if (to_model) return from == "models";
  const auto rule = kMayInclude.find(from);
  return rule != kMayInclude.end() && rule->second.contains(to);
}

struct Include {
  std::string target;
  char quote = 0;  // '"' or '<'
};

std::vector<Include> includes_of(const fs::path& file) {
  std::vector<Include> found;
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t hash = line.find_first_not_of(" \t");
    if (hash == std::string::npos || line[hash] != '#') continue;
    const size_t word = line.find_first_not_of(" \t", hash + 1);
    if (word == std::string::npos || line.compare(word, 7, "include") != 0) continue;
    const size_t open = line.find_first_of("\"<", word + 7);
    if (open == std::string::npos) continue;
    const size_t close = line.find(line[open] == '"' ? '"' : '>', open + 1);
    if (close != std::string::npos) found.push_back({line.substr(open + 1, close - open - 1), line[open]});
  }
  return found;
}

// One line per include that goes against the rules: "src/ops/ops.h: ops may not include engine/engine.h".
std::vector<std::string> violations(const fs::path& root) {
  std::vector<std::string> bad;
  const auto check_file = [&](const fs::path& file, const std::string& layer) {
    const std::string where = fs::relative(file, root).string();
    if (!layer.starts_with("models/") && !kMayInclude.contains(layer))
      bad.push_back(where + ": unknown layer " + layer);
    for (const Include& include : includes_of(file)) {
      const fs::path target(include.target);
      const bool plain = !target.has_parent_path();
      const std::string to = plain ? "" : layer_of(target);
      const bool ours = !plain && (to.starts_with("models/") || kMayInclude.contains(to));
      if (include.quote == '<') {
        if (ours && (fs::exists(root / "src" / target) || fs::exists(root / "include" / target)))
          bad.push_back(where + ": write <" + include.target + "> with quotes");
      } else if (plain && layer == "apps") {
        continue;  // the programs have no library: a folder of their own files
      } else if (!ours) {
        bad.push_back(where + ": write \"" + include.target + "\" with its layer's folder");
      } else if (!allowed(layer, to)) {
        bad.push_back(where + ": " + layer + " may not include " + include.target);
      }
    }
  };
  const auto walk = [&](const fs::path& top, const auto& layer_of_file) {
    if (!fs::exists(top)) return;
    for (const auto& entry : fs::recursive_directory_iterator(top)) {
      const std::string extension = entry.path().extension().string();
      if (!entry.is_regular_file()) continue;
      if (extension == ".h" || extension == ".cpp" || extension == ".inc" || extension == ".cu" || extension == ".cuh")
        check_file(entry.path(), layer_of_file(fs::relative(entry.path(), top)));
    }
  };
  walk(root / "src", [](const fs::path& path) { return layer_of(path); });
  walk(root / "include", [](const fs::path& path) { return layer_of(path); });
  walk(root / "apps", [](const fs::path&) { return std::string("apps"); });
  std::sort(bad.begin(), bad.end());
  return bad;
}

TEST(Layering, IncludesGoDownwardOnly) {
  const fs::path root = SACCADE_SOURCE_DIR;
  ASSERT_TRUE(fs::exists(root / "src/base/check.h"));  // else nothing would be checked
  EXPECT_THAT(violations(root), IsEmpty());
}

// The rules themselves: a small tree with planted includes.
class PlantedTree : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  fs::path root_;
};

TEST_F(PlantedTree, DownwardIncludesPass) {
  write("include/saccade/engine.h", "#include <string>\n#include \"saccade/request.h\"\n");
  write("src/base/a.h", "#pragma once\n#include <vector>\n");
  write("src/ops/b.cpp", "#include \"ops/b.h\"\n#include \"kernels/cpu/gemm.h\"\n");
  write("src/models/one/c.cpp",
        "#include \"models/model.h\"\n#include \"models/one/config.h\"\n#include \"ops/ops.h\"\n");
  write("src/models/registry.cpp", "#include \"models/one/model.h\"\n");
  write("src/engine/d.cpp", "#include \"models/model.h\"\n#include \"saccade/engine.h\"\n");
  write("apps/run.cpp", "#include \"flags.h\"\n#include \"saccade/engine.h\"\n");
  EXPECT_THAT(violations(root_), IsEmpty());
}

TEST_F(PlantedTree, UpwardAndSidewaysIncludesFail) {
  write("include/saccade/engine.h", "#include \"base/error.h\"\n");
  write("src/base/a.h", "#include \"tensor/tensor.h\"\n");
  write("src/media/b.cpp", "  #  include \"text/tokenizer.h\"  // indented\n");
  write("src/kernels/c.cpp", "#include \"ops/ops.h\"\n");
  write("src/models/one/d.cpp", "#include \"kernels/cpu/gemm.h\"\n#include \"engine/runner.h\"\n");
  write("src/models/one/e.cpp", "#include \"models/two/config.h\"\n");
  write("src/engine/f.cpp", "#include \"models/one/config.h\"\n");
  EXPECT_THAT(violations(root_), ElementsAre("include/saccade/engine.h: saccade may not include base/error.h",
                                             "src/base/a.h: base may not include tensor/tensor.h",
                                             "src/engine/f.cpp: engine may not include models/one/config.h",
                                             "src/kernels/c.cpp: kernels may not include ops/ops.h",
                                             "src/media/b.cpp: media may not include text/tokenizer.h",
                                             "src/models/one/d.cpp: models/one may not include engine/runner.h",
                                             "src/models/one/d.cpp: models/one may not include kernels/cpu/gemm.h",
                                             "src/models/one/e.cpp: models/one may not include models/two/config.h"));
}

TEST_F(PlantedTree, DisguisedIncludesFail) {
  write("src/base/x.h", "#include <engine/engine.h>\n");
  write("src/engine/engine.h", "#pragma once\n");
  write("src/text/y.cpp", "#include \"../engine/engine.h\"\n#include \"helper.h\"\n");
  write("src/extra/z.cpp", "#include <vector>\n");
  EXPECT_THAT(violations(root_),
              ElementsAre("src/base/x.h: write <engine/engine.h> with quotes", "src/extra/z.cpp: unknown layer extra",
                          "src/text/y.cpp: write \"../engine/engine.h\" with its layer's folder",
                          "src/text/y.cpp: write \"helper.h\" with its layer's folder"));
}

}  // namespace
