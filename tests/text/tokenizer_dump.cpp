// Ids of many strings, for tools/reference/tokenizer_parity.py.
// usage: tokenizer_dump TOKENIZER_JSON STRINGS
// STRINGS has one JSON string a line. Each line out is [ids, ids with special, text decoded from the latter,
// the same without special tokens].
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "text/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: tokenizer_dump TOKENIZER_JSON STRINGS\n";
    return 2;
  }
  try {
    const saccade::Tokenizer tokenizer = saccade::Tokenizer::load(argv[1]);
    std::ifstream strings(argv[2]);
    for (std::string line; std::getline(strings, line);) {
      const auto text = nlohmann::json::parse(line).get<std::string>();
      const auto ids = tokenizer.encode_with_special(text);
      std::cout << nlohmann::json::array(
                       {tokenizer.encode(text), ids, tokenizer.decode(ids, false), tokenizer.decode(ids, true)})
                << '\n';
    }
  } catch (const saccade::Error& e) {
    std::cerr << e.what() << '\n';
    return 1;
  }
}
